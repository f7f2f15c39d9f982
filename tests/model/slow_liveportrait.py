"""LivePortrait's networks a second time: plain numpy in float64 over a state dict, from the formulas, with no care for speed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Array = np.ndarray


class Weights:
    """A state dict seen from one module: `w["conv.weight"]`, `w / "conv"`."""

    def __init__(self, state: Mapping[str, Array], prefix: str = "") -> None:
        self.state, self.prefix = state, prefix

    def __truediv__(self, name: str) -> Weights:
        return Weights(self.state, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Array:
        return self.state[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return any(k.startswith(f"{self.prefix}{name}.") for k in self.state)

    def each(self, pattern: str) -> list[Weights]:
        found: list[Weights] = []
        while (name := pattern.format(len(found))) in self:
            found.append(self / name)
        return found


def per_channel(v: Array, x: Array) -> Array:
    return v.reshape(-1, *[1] * (x.ndim - 2))


def conv(x: Array, w: Weights, *, pad: int = 0, stride: int = 1) -> Array:
    if "weight_orig" in {k.removeprefix(w.prefix) for k in w.state}:  # spectral norm
        orig = w["weight_orig"]
        weight = orig / (w["weight_u"] @ orig.reshape(len(orig), -1) @ w["weight_v"])
    else:
        weight = w["weight"]
    kernel = weight.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0)] + [(pad, pad)] * len(kernel))
    sizes = [(n - k) // stride + 1 for n, k in zip(x.shape[2:], kernel, strict=True)]
    out = np.zeros((len(x), len(weight), *sizes))
    for at in np.ndindex(*kernel):
        seen = x[(..., *(slice(a, a + stride * (n - 1) + 1, stride) for a, n in zip(at, sizes, strict=True)))]
        tap = weight[(slice(None), slice(None), *at)]
        depthwise = tap.shape[1] == 1 and x.shape[1] > 1
        out += per_channel(tap[:, 0], x) * seen if depthwise else np.einsum("oc,bc...->bo...", tap, seen)
    return out + per_channel(w["bias"], out) if f"{w.prefix}bias" in w.state else out


def batch_norm(x: Array, w: Weights) -> Array:
    x = (x - per_channel(w["running_mean"], x)) / np.sqrt(per_channel(w["running_var"], x) + 1e-5)
    return x * per_channel(w["weight"], x) + per_channel(w["bias"], x)


def layer_norm(x: Array, w: Weights) -> Array:
    """Over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w["weight"] + w["bias"]


def leaky(x: Array, slope: float = 0.0) -> Array:
    return np.where(x > 0, x, slope * x)


def conv_norm(x: Array, w: Weights, slope: float = 0.0) -> Array:
    return leaky(batch_norm(conv(x, w / "conv", pad=1), w / "norm"), slope)


def halve(x: Array) -> Array:
    """Mean of 2 by 2 over the last two axes."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def double(x: Array) -> Array:
    return x.repeat(2, -1).repeat(2, -2)


def linear(x: Array, w: Weights) -> Array:
    return x @ w["weight"].T + w["bias"]


def mlp(x: Array, w: Weights, layers: int) -> Array:
    for i in range(layers):
        x = linear(x if i == 0 else leaky(x), w / f"mlp.{2 * i}")
    return x


def appearance(image: Array, w: Weights, depth: int) -> Array:
    x = conv_norm(image, w / "first")
    for block in w.each("down_blocks.{}"):
        x = halve(conv_norm(x, block))
    x = conv(x, w / "second")
    x = x.reshape(len(x), -1, depth, *x.shape[2:])
    for block in w.each("resblocks_3d.3dr{}"):
        y = conv(leaky(batch_norm(x, block / "norm1")), block / "conv1", pad=1)
        x = x + conv(leaky(batch_norm(y, block / "norm2")), block / "conv2", pad=1)
    return x


def motion(image: Array, w: Weights) -> dict[str, Array]:
    def channels_first(x: Array, norm: Weights) -> Array:
        return np.moveaxis(layer_norm(np.moveaxis(x, 1, -1), norm), -1, 1)

    w, x = w / "detector", image
    for s, stage in enumerate(w.each("stages.{}")):
        down = w / f"downsample_layers.{s}"
        x = (
            channels_first(conv(x, down / "0", stride=4), down / "1")
            if s == 0
            else conv(channels_first(x, down / "0"), down / "1", stride=2)
        )
        for block in stage.each("{}"):
            y = layer_norm(np.moveaxis(conv(x, block / "dwconv", pad=3), 1, -1), block / "norm")
            y = linear(y, block / "pwconv1")
            y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
            g = np.sqrt((y**2).sum((1, 2), keepdims=True))
            y = block["grn.gamma"] * (y * (g / (g.mean(-1, keepdims=True) + 1e-6))) + block["grn.beta"] + y
            x = x + np.moveaxis(linear(y, block / "pwconv2"), -1, 1)
    pooled = layer_norm(x.mean((2, 3)), w / "norm")
    return {name: linear(pooled, w / f"fc_{name}") for name in ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")}


def sample(volume_CDHW: Array, where_X: Array) -> Array:
    """Trilinear, zeros outside; where (..., 3) in x, y, z with -1 and 1 at the outer edges of the outermost voxels: (C, ...)."""
    at = [((where_X[..., i] + 1) * n - 1) / 2 for i, n in enumerate(volume_CDHW.shape[:0:-1])]  # x, y, z
    out = np.zeros((len(volume_CDHW), *where_X.shape[:-1]))
    for corner in np.ndindex(2, 2, 2):
        index = [np.floor(a).astype(int) + c for a, c in zip(at, corner, strict=True)]
        weight = np.prod([np.maximum(0, 1 - abs(a - i)) for a, i in zip(at, index, strict=True)], axis=0)
        inside = np.all([(i >= 0) & (i < n) for i, n in zip(index, volume_CDHW.shape[:0:-1], strict=True)], axis=0)
        x, y, z = (np.where(inside, i, 0) for i in index)
        out += volume_CDHW[:, z, y, x] * weight * inside
    return out


def warp_one(volume: Array, kp_d: Array, kp_s: Array, w: Weights) -> tuple[Array, Array, Array]:
    """One frame: features (C, H, W), flow (D, H, W, 3), occlusion (1, H, W)."""
    d, h, wide = volume.shape[1:]
    grid = np.zeros((d, h, wide, 3))
    for z, y, x in np.ndindex(d, h, wide):
        grid[z, y, x] = (2 * x / (wide - 1) - 1, 2 * y / (h - 1) - 1, 2 * z / (d - 1) - 1)
    dense = w / "dense_motion_network"
    small = leaky(batch_norm(conv(volume[None], dense / "compress"), dense / "norm"))[0]
    flows, stack = [grid], [np.zeros((1, d, h, wide)), sample(small, grid)]
    for to, of in zip(kp_d, kp_s, strict=True):
        flows.append(grid - to + of)
        heat = [np.exp(-0.5 * ((grid - p) ** 2).sum(-1) / 0.01) for p in (to, of)]
        stack += [(heat[0] - heat[1])[None], sample(small, flows[-1])]

    levels = [np.concatenate(stack)[None]]
    for block in (dense / "hourglass.encoder").each("down_blocks.{}"):
        levels.append(halve(conv_norm(levels[-1], block)))
    x = levels.pop()
    for block in (dense / "hourglass.decoder").each("up_blocks.{}"):
        x = np.concatenate([conv_norm(double(x), block), levels.pop()], 1)
    x = conv_norm(x, dense / "hourglass.decoder")

    mask = np.exp(conv(x, dense / "mask", pad=3)[0])
    flow = sum(m[..., None] * f for m, f in zip(mask / mask.sum(0), flows, strict=True))
    occlusion = 1 / (1 + np.exp(-conv(x.reshape(1, -1, h, wide), dense / "occlusion", pad=3)[0]))
    warped = sample(volume, flow).reshape(1, -1, h, wide)
    return conv(conv_norm(warped, w / "third", 0.01), w / "fourth")[0] * occlusion, flow, occlusion


def generator(feature: Array, w: Weights) -> Array:
    def spade(x: Array, norm: Weights) -> Array:
        seen = feature
        while seen.shape[-1] < x.shape[-1]:
            seen = double(seen)
        shared = leaky(conv(seen, norm / "mlp_shared.0", pad=1))
        x = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
        return x * (1 + conv(shared, norm / "mlp_gamma", pad=1)) + conv(shared, norm / "mlp_beta", pad=1)

    def block(x: Array, b: Weights) -> Array:
        y = conv(leaky(spade(x, b / "norm_0"), 0.2), b / "conv_0", pad=1)
        y = conv(leaky(spade(y, b / "norm_1"), 0.2), b / "conv_1", pad=1)
        return y + (conv(spade(x, b / "norm_s"), b / "conv_s") if "conv_s" in b else x)

    x = conv(feature, w / "fc", pad=1)
    for middle in w.each("G_middle_{}"):
        x = block(x, middle)
    x = block(double(x), w / "up_0")
    x = block(double(x), w / "up_1")
    x = conv(leaky(x, 0.2), w / "conv_img.0", pad=1)
    side = math.isqrt(x.shape[1] // 3)
    b, _, h, wide = x.shape
    x = x.reshape(b, 3, side, side, h, wide).transpose(0, 1, 4, 2, 5, 3).reshape(b, 3, h * side, wide * side)
    return 1 / (1 + np.exp(-x))
