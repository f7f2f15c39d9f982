"""LivePortrait's networks: the published layout key for key, the reference's numbers, and gradients everywhere."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import slow_liveportrait as slow
import torch
from tinyportrait import TINY
from torch import Tensor, nn

from model.liveportrait import OFFICIAL, LivePortrait
from model.liveportrait_layers import SpectralConv2d, bake_spectral_norm
from model.liveportrait_weights import load_liveportrait
from schemas.keypoints import HeadMotion

torch.set_num_threads(1)

PARITY = Path("parity") / "liveportrait-tiny"
PREFIXES = {"F": "appearance", "M": "motion", "W": "warping", "G": "generator", "S": "stitching", "R_lip": "lip", "R_eye": "eye"}


@pytest.fixture(scope="module")
def tiny() -> LivePortrait:
    torch.manual_seed(0)
    return LivePortrait(TINY).eval()


def run_all(net: LivePortrait, given: dict[str, Tensor]) -> dict[str, Tensor]:
    volume = net.appearance(given["img"][:1])
    motion = net.motion(given["img"])
    warped = net.warping(volume, given["kp_driving"], given["kp_source"])
    both = torch.cat([given["kp_source"].expand_as(given["kp_driving"]), given["kp_driving"]], dim=1).flatten(1)
    heads = {"stitch": net.stitching(both), "eye": net.eye(given["eye_in"]), "lip": net.lip(given["lip_in"])}
    rendered = {"W_out": warped.out, "deformation": warped.deformation, "occlusion": warped.occlusion, "image": net.generator(warped.out)}
    return {"feature_3d": volume, **{f"M_{k}": v for k, v in motion._asdict().items()}, **rendered, **heads}


def some_input(frames: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    kp = [torch.randn(n, 21, 3, generator=g) * 0.3 for n in (1, frames)]
    mlp = {f"{k}_in": torch.randn(frames, n, generator=g) for k, n in (("eye", 66), ("lip", 65))}
    return {"img": torch.rand(frames, 3, 32, 32, generator=g), "kp_source": kp[0], "kp_driving": kp[1], **mlp}


@pytest.mark.parametrize("baked", [False, True])
def test_every_tensor_of_the_reference(shared: Path, baked: bool) -> None:
    net = load_liveportrait(shared / PARITY / "weights")
    if baked:
        net.bake()
    given = {k: torch.from_numpy(v) for k, v in np.load(shared / PARITY / "in.npz").items()}
    with torch.no_grad():
        got = {k: v.numpy() for k, v in run_all(net, given).items()}
    head = HeadMotion.from_network({k.removeprefix("M_"): v for k, v in got.items() if k.startswith("M_")})
    got |= {"R": head.rotation, "x_s": head.points()}
    reference = np.load(shared / PARITY / "ref.npz")
    assert set(got) == set(reference.files)
    for name in reference.files:
        np.testing.assert_allclose(got[name], reference[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_fresh_networks_equal_the_slow_reference(seed: int) -> None:
    torch.manual_seed(seed)
    net = LivePortrait(TINY).double().eval()
    for name, value in net.named_buffers():
        if "running" in name:  # batch norm that does something
            nn.init.uniform_(value, 0.5, 1.5)
    for name, value in net.named_parameters():
        if "grn" in name:
            nn.init.normal_(value)
    given = {k: v.double() for k, v in some_input().items()}
    with torch.no_grad():
        got = {k: v.numpy() for k, v in run_all(net, given).items()}
    for name, expected in slow_run(net, {k: v.numpy() for k, v in given.items()}).items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-9, err_msg=name)


def slow_run(net: LivePortrait, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    w = slow.Weights({k: v.numpy() for k, v in net.state_dict().items()})
    volume = slow.appearance(given["img"][:1], w / "appearance", TINY.appearance.volume_depth)
    warped = [slow.warp_one(volume[0], kp, given["kp_source"][0], w / "warping") for kp in given["kp_driving"]]
    out, deformation, occlusion = (np.stack(frames) for frames in zip(*warped, strict=True))
    rendered = {"W_out": out, "deformation": deformation, "occlusion": occlusion, "image": slow.generator(out, w / "generator")}
    both = np.stack([np.concatenate([given["kp_source"][0], kp]).ravel() for kp in given["kp_driving"]])
    heads = {"stitch": slow.mlp(both, w / "stitching", 4), "eye": slow.mlp(given["eye_in"], w / "eye", 6)}
    motion = {f"M_{k}": v for k, v in slow.motion(given["img"], w / "motion").items()}
    return {"feature_3d": volume, **motion, **rendered, **heads, "lip": slow.mlp(given["lip_in"], w / "lip", 4)}


def test_keys_and_shapes_at_full_width(shared: Path) -> None:
    with torch.device("meta"):
        net = LivePortrait(OFFICIAL)
    got = {name: {k: tuple(v.shape) for k, v in net.get_submodule(name).state_dict().items()} for name in PREFIXES.values()}
    assert got == published_shapes((shared / "facts" / "REENACTOR_KEYS.txt").read_text())


def published_shapes(text: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Sections `== F: 107 tensors`, lines `name  (64, 3, 3, 3)`."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in text.splitlines():
        if section := re.match(r"== (\w+):", line):
            current = shapes.setdefault(PREFIXES[section[1]], {})
        elif tensor := re.match(r"(\S+)\s+\((.*)\)$", line):
            current[tensor[1]] = tuple(int(n) for n in tensor[2].split(",") if n.strip())
    return shapes


def test_parameter_counts_at_full_width() -> None:
    with torch.device("meta"):
        net = LivePortrait(OFFICIAL)
    millions = {name: sum(p.numel() for p in net.get_submodule(name).parameters()) / 1e6 for name in PREFIXES.values()}
    published = {
        "appearance": 0.836,
        "motion": 28.119,
        "warping": 45.530,
        "generator": 55.365,
        "stitching": 0.045,
        "lip": 0.037,
        "eye": 0.145,
    }
    assert millions == pytest.approx(published, abs=0.001)


def test_shapes_and_ranges(tiny: LivePortrait) -> None:
    with torch.no_grad():
        out = run_all(tiny, some_input())
    assert out["feature_3d"].shape == (1, 3, 4, 8, 8)
    assert out["deformation"].shape == (2, 4, 8, 8, 3) and out["W_out"].shape == (2, 8, 8, 8)
    assert out["image"].shape == (2, 3, 64, 64) and out["image"].min() >= 0 and out["image"].max() <= 1


def test_frames_of_a_batch_are_independent(tiny: LivePortrait) -> None:
    given = some_input(3)
    one = given | {"kp_driving": given["kp_driving"][1:2]}  # the same source, one of the driving frames
    with torch.no_grad():
        together, alone = run_all(tiny, given), run_all(tiny, one)
        motion = tiny.motion(given["img"][1:2])
    for name in ("W_out", "deformation", "image", "stitch"):
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(together["M_kp"][1:2], motion.kp, rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter(tiny: LivePortrait) -> None:
    net = copy.deepcopy(tiny)  # in evaluation, where batch norm does not cancel the bias before it
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.ones_(module.bias)  # among two or three channels all may be below zero by chance, and ReLU passes nothing
    sum(v.square().mean() for v in run_all(net, some_input()).values()).backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    zero = {n for n, p in net.named_parameters() if p.grad is not None and not p.grad.any()}
    assert not without and not zero


def test_training_moves_every_network() -> None:
    torch.manual_seed(2)
    net, given = LivePortrait(TINY).train(), some_input()
    target = torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (run_all(net, given)["image"] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_spectral_norm_equals_torchs() -> None:
    torch.manual_seed(3)
    theirs = nn.utils.spectral_norm(nn.Conv2d(3, 5, 3, padding=1)).double()  # in float32 the order of sums shows, which is the CPU's
    ours = SpectralConv2d(3, 5, 3).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for training in (True, True, False):  # each forward in training moves (u, v)
        ours.train(training), theirs.train(training)
        grads = []
        for net in (ours, theirs):
            net.zero_grad()
            net(x).square().sum().backward()
            grads.append(net.weight_orig.grad)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(*grads)


def test_baking_changes_no_number_and_leaves_no_spectral_norm(tiny: LivePortrait) -> None:
    baked = copy.deepcopy(tiny)
    bake_spectral_norm(baked)
    assert not [m for m in baked.modules() if isinstance(m, SpectralConv2d)]
    with torch.no_grad():
        before, after = run_all(tiny, some_input()), run_all(baked, some_input())
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
