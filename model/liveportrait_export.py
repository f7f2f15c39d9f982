"""LivePortrait to ONNX: one file per network, for ONNX Runtime on the CPU and on CUDA (1.25 or later), without a plugin.

| file | inputs | outputs |
|---|---|---|
| appearance_feature_extractor.onnx | img (1, side, side, 3) | output (1, C, D, h, w) |
| motion_extractor.onnx | img (batch, side, side, 3) | pitch, yaw, roll, t, exp, scale, kp as `MotionOutput` |
| warping_spade.onnx | feature_3d (1, C, D, h, w), kp_driving (batch, K, 3), kp_source (1, K, 3) | out (batch, S, S, 3), mean (batch,) |
| stitching.onnx, stitching_eye.onnx, stitching_lip.onnx | input (batch, n) | output (batch, m) |

Pictures are uint8 RGB, all else is float32; S = 2 side. `mean` is that of the picture in 0..1 before it became uint8, NaN where a number
on the way was not finite, which uint8 could not show.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.liveportrait import LivePortrait, MotionExtractor, MotionOutput
from model.liveportrait_inference import AppearanceInference, WarpingInference
from model.liveportrait_inference_generator import GeneratorInference
from schemas.files import atomic_file

Precision = Literal["fp32", "fp16"]

FORMAT = "liveportrait/1"  # of the files: names, inputs, outputs
OPSET = 20  # the first whose GridSample is 5-D on CUDA
FILES = (
    "appearance_feature_extractor.onnx",
    "motion_extractor.onnx",
    "warping_spade.onnx",
    "stitching.onnx",
    "stitching_eye.onnx",
    "stitching_lip.onnx",
)


def export_liveportrait(networks: LivePortrait, folder: Path, *, side: int = 256, precision: Precision = "fp32") -> list[Path]:
    """Writes `FILES` into `folder` (made if need be), each under its name only when whole, and returns their paths in that order.

    Args:
        networks: float32 on the CPU; left as it is, a copy is baked.
        side: rows and columns of the pictures that go in, px; 256 for the published weights.
        precision: fp16 makes the convolutions of appearance, warping and generator half precision. Coordinates, sampling and statistics
            stay float32, as do inputs, outputs, motion and the MLPs.

    Raises:
        ValueError: a side that the networks cannot halve as often as they do, or networks of another type than float32.
    """
    config = networks.config
    step = 1 << max(config.appearance.halvings + config.warping.hourglass_levels, len(config.motion.dims) + 1)
    if side <= 0 or side % step:
        raise ValueError(f"side {side}: must be a multiple of {step} px for these networks")
    if precision not in ("fp32", "fp16"):
        raise ValueError(f"precision {precision!r}: fp32 or fp16")
    if types := {p.dtype for p in networks.parameters()} - {torch.float32}:
        raise ValueError(f"networks must be float32 to be exported, found {', '.join(sorted(map(str, types)))}")
    baked = copy.deepcopy(networks).cpu().bake()
    working = torch.float16 if precision == "fp16" else torch.float32
    image = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    volume = torch.zeros(volume_shape(networks, side))
    keypoints = torch.zeros(2, config.motion.keypoints, 3)
    mlps = {
        "stitching": (baked.stitching, config.stitching[0]),
        "stitching_eye": (baked.eye, config.eye[0]),
        "stitching_lip": (baked.lip, config.lip[0]),
    }
    with torch.no_grad():
        models = {
            "appearance_feature_extractor": to_onnx(AppearanceGraph(baked, working), {"img": image}, ["output"], batched=()),
            "motion_extractor": to_onnx(MotionGraph(baked.motion), {"img": image.expand(2, -1, -1, -1)}, list(MotionOutput._fields)),
            "warping_spade": to_onnx(
                RenderGraph(baked, working),
                {"feature_3d": volume, "kp_driving": keypoints, "kp_source": keypoints[:1]},
                ["out", "mean"],
                batched=("kp_driving",),
            ),
            **{name: to_onnx(mlp, {"input": torch.zeros(2, n)}, ["output"]) for name, (mlp, n) in mlps.items()},
        }
    folder.mkdir(parents=True, exist_ok=True)
    for name in list(models):
        model = models.pop(name)
        exact = name not in ("appearance_feature_extractor", "warping_spade")
        about = {"crosspair.format": FORMAT, "crosspair.side": str(side), "crosspair.precision": "fp32" if exact else precision}
        onnx.helper.set_model_props(model, about)
        with atomic_file(folder / f"{name}.onnx") as f:
            f.write(model.SerializeToString(deterministic=True))
    return [folder / name for name in FILES]


def volume_shape(networks: LivePortrait, side: int) -> tuple[int, int, int, int, int]:
    """Of the appearance of a picture of side x side px: (1, C, D, h, w)."""
    a = networks.config.appearance
    return 1, a.volume_channels, a.volume_depth, side >> a.halvings, side >> a.halvings


class AppearanceGraph(nn.Module):
    def __init__(self, baked: LivePortrait, working: torch.dtype) -> None:
        super().__init__()
        self.appearance = AppearanceInference(baked.appearance, working)

    def forward(self, img: Tensor) -> Tensor:
        return self.appearance(to_unit(img))


class MotionGraph(nn.Module):
    def __init__(self, motion: MotionExtractor) -> None:
        super().__init__()
        self.motion = motion

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.motion(to_unit(img)))


class RenderGraph(nn.Module):
    """Warping and generator. With `intermediates` also W's output, the flow, the occlusion and the picture (B, 3, H, W) in 0..1."""

    def __init__(self, baked: LivePortrait, working: torch.dtype, *, intermediates: bool = False) -> None:
        super().__init__()
        self.warping = WarpingInference(baked.warping, working)
        self.generator = GeneratorInference(baked.generator, working)
        self.upscale, self.intermediates = baked.config.generator.upscale, intermediates

    def forward(self, feature_3d: Tensor, kp_driving: Tensor, kp_source: Tensor) -> tuple[Tensor, ...]:
        warped = self.warping(feature_3d, kp_driving, kp_source)
        logits = self.generator(warped.out).to(kp_driving.dtype)
        unit = logits.sigmoid()
        seen = logits.mean((1, 2, 3)) + warped.deformation.mean((1, 2, 3, 4))
        mean = unit.mean((1, 2, 3)) + (seen - seen)  # an infinite logit is a fine 0 or 1 after the sigmoid: here it is NaN
        blocks = (unit * 255).round().to(torch.uint8).unflatten(1, (3, self.upscale, self.upscale))
        out = blocks.permute(0, 4, 2, 5, 3, 1).flatten(3, 4).flatten(1, 2)  # pixel shuffle, channels last
        if not self.intermediates:
            return out, mean
        return out, mean, warped.out.to(unit.dtype), warped.deformation, warped.occlusion, F.pixel_shuffle(unit, self.upscale)


def to_unit(img: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in 0..1."""
    return img.permute(0, 3, 1, 2).to(torch.float32) / 255


def to_onnx(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], *, batched: tuple[str, ...] | None = None) -> onnx.ModelProto:
    """The graph of a module with these inputs by name; those in `batched` (all by default) have a first axis of any length, `batch`."""
    batch = torch.export.Dim("batch", min=1)
    free = inputs if batched is None else batched
    shapes = [{0: batch} if name in free else None for name in inputs]
    with silence():
        program = torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[f"{_OURS}{name}" for name in outputs],
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _rename(model, inputs)
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "crosspair", "", ""
    # what the exporter notes about each node: its place in the Python source on this machine
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    return model


_OURS = "output:"  # no name that the exporter makes has a colon


def _rename(model: onnx.ModelProto, inputs: Collection[str]) -> None:
    """Outputs get their names; what the exporter called so itself, or as an input, gets another."""
    made = {name for node in model.graph.node for name in node.output}
    taken = {name.removeprefix(_OURS) for name in made if name.startswith(_OURS)} | set(inputs)
    new = {name: f"{name}:inner" for name in made & taken} | {f"{_OURS}{name}": name for name in taken}
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = new.get(value.name, value.name)


@contextmanager
def silence() -> Iterator[None]:
    """No warnings of the exporter: they concern the versions of its own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
