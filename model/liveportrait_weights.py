"""LivePortrait's published weights: from a folder of .pth files to networks, or a sentence that says what is wrong with which file.

FOLDER/base_models/{appearance_feature_extractor,motion_extractor,warping_module,spade_generator}.pth   bare state dicts
FOLDER/retargeting_models/stitching_retargeting_module.pth     {retarget_shoulder, retarget_mouth, retarget_eye}: state dicts

Any width loads: sizes are read off the tensors, unless a config says what they must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.liveportrait import AppearanceConfig, LivePortrait, LivePortraitConfig, MotionConfig
from model.liveportrait_generator import GeneratorConfig
from model.liveportrait_warping import WarpingConfig

State = Mapping[str, Tensor]

BASE_FILES = {
    "appearance": "base_models/appearance_feature_extractor.pth",
    "motion": "base_models/motion_extractor.pth",
    "warping": "base_models/warping_module.pth",
    "generator": "base_models/spade_generator.pth",
}
RETARGETING_FILE = "retargeting_models/stitching_retargeting_module.pth"
_RETARGETING_KEYS = {"stitching": "retarget_shoulder", "lip": "retarget_mouth", "eye": "retarget_eye"}
_AGAIN = "download the file again from the LivePortrait release (by KwaiVGI, folder liveportrait)"


def load_liveportrait(folder: Path, config: LivePortraitConfig | None = None) -> LivePortrait:
    """All networks in float32 on the CPU, in evaluation mode, trainable; `.bake()` makes them ready for inference.

    Args:
        folder: holds base_models/ and retargeting_models/.
        config: the sizes that the files must have; None takes the sizes that they have.

    Raises:
        ValueError: a file that is missing, damaged, not of this architecture, or not of one model with the others.
    """
    states = read_states(folder)
    if config is None:
        config = derive_config(states, folder)
    with torch.device("meta"):
        networks = LivePortrait(config)
    for name, state in states.items():
        _check(state, networks.get_submodule(name).state_dict(), _where(folder, name))
    networks.to_empty(device="cpu")
    for name, state in states.items():
        networks.get_submodule(name).load_state_dict(state)
    return networks.eval()


def read_states(folder: Path) -> dict[str, State]:
    """State dicts by the name of the network in `LivePortrait`."""
    states: dict[str, State] = {name: _state(_read(folder / file), str(folder / file)) for name, file in BASE_FILES.items()}
    wrapper = _read(folder / RETARGETING_FILE)
    for name, key in _RETARGETING_KEYS.items():
        if not isinstance(wrapper, dict) or key not in wrapper:
            raise ValueError(
                f"{folder / RETARGETING_FILE}: expected a dict of {', '.join(_RETARGETING_KEYS.values())}; {key} is missing: {_AGAIN}"
            )
        state = _state(wrapper[key], _where(folder, name))
        states[name] = {k.removeprefix("module."): v for k, v in state.items()}  # as saved from a model in DataParallel
    return states


def _where(folder: Path, name: str) -> str:
    return str(folder / BASE_FILES[name]) if name in BASE_FILES else f"{folder / RETARGETING_FILE} ({_RETARGETING_KEYS[name]})"


def _read(path: Path) -> object:
    if not path.is_file():
        raise ValueError(
            f"{path}: not found. Expected the LivePortrait weights as published: put the folders base_models and retargeting_models there"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged stream makes the reader fail in any way at all, assertions included
        reason = str(e).split("\n")[0] or type(e).__name__
        raise ValueError(
            f"{path}: expected a PyTorch file of tensors and nothing else; truncated, or another kind of file ({reason}): {_AGAIN}"
        ) from e


def _state(content: object, where: str) -> State:
    if not isinstance(content, dict) or not content or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise ValueError(f"{where}: expected a state dict, names to tensors: {_AGAIN}")
    return content


def _check(state: State, expected: State, where: str) -> None:
    """Same names and shapes, or a ValueError that names the first few that differ."""
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    shapes = [f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}" for k, v in expected.items() if k in state and state[k].shape != v.shape]
    wrong = [_few(what, names) for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)) if names]
    if wrong:
        found = f"found another architecture than the {len(expected)} tensors expected: {'; '.join(wrong)}"
        raise ValueError(f"{where}: {found}. Use the file of this name, or {_AGAIN}")


def _few(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def derive_config(states: Mapping[str, State], folder: Path) -> LivePortraitConfig:
    """The sizes that these tensors have. Only what sizes cannot tell is checked here; `_check` compares every tensor with the result."""
    derive: dict[str, Callable[[State], object]] = {
        "appearance": _appearance, "motion": _motion, "warping": _warping, "generator": _generator,
        "stitching": _mlp, "lip": _mlp, "eye": _mlp,
    }  # fmt: skip
    parts: dict[str, object] = {}
    for name, of in derive.items():
        try:
            parts[name] = of(states[name])
        except (KeyError, IndexError, ZeroDivisionError, ValueError) as e:
            found = f"its sizes cannot be told ({type(e).__name__}: {e}), the file holds {', '.join(list(states[name])[:3])}, ..."
            raise ValueError(f"{_where(folder, name)}: expected LivePortrait's {name} network; {found}: {_AGAIN}") from e
    try:
        return replace(LivePortraitConfig(), **parts)  # type: ignore[arg-type]
    except ValueError as e:
        raise ValueError(f"{folder}: expected files of one model: {e}. Take all files from one release") from e


def _count(state: State, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... there are."""
    n = 0
    while pattern.format(n) in state:
        n += 1
    return n


def _appearance(state: State) -> AppearanceConfig:
    channels = state["resblocks_3d.3dr0.conv1.weight"].shape[0]
    return AppearanceConfig(
        width=state["first.conv.weight"].shape[0],
        halvings=_count(state, "down_blocks.{}.conv.weight"),
        volume_channels=channels,
        volume_depth=state["second.weight"].shape[0] // channels,
        blocks=_count(state, "resblocks_3d.3dr{}.conv1.weight"),
    )


def _motion(state: State) -> MotionConfig:
    stages = max(1, _count(state, "detector.stages.{}.0.dwconv.weight"))
    return MotionConfig(
        depths=tuple(_count(state, f"detector.stages.{s}.{{}}.dwconv.weight") for s in range(stages)),
        dims=tuple(state[f"detector.stages.{s}.0.dwconv.weight"].shape[0] for s in range(stages)),
        keypoints=state["detector.fc_kp.weight"].shape[0] // 3,
    )


def _warping(state: State) -> WarpingConfig:
    dense = "dense_motion_network."
    levels = _count(state, dense + "hourglass.encoder.down_blocks.{}.conv.weight")
    compress, channels = state[dense + "compress.weight"].shape[:2]
    return WarpingConfig(
        keypoints=state[dense + "mask.weight"].shape[0] - 1,
        volume_channels=channels,
        volume_depth=state["third.conv.weight"].shape[1] // channels,
        out_channels=state["fourth.weight"].shape[0],
        compress=compress,
        hourglass_width=state[f"{dense}hourglass.decoder.up_blocks.{levels - 1}.conv.weight"].shape[0],
        hourglass_max=state[f"{dense}hourglass.encoder.down_blocks.{levels - 1}.conv.weight"].shape[0],
        hourglass_levels=levels,
        occlusion=dense + "occlusion.weight" in state,
    )


def _generator(state: State) -> GeneratorConfig:
    return GeneratorConfig(
        in_channels=state["fc.weight"].shape[1],
        out_channels=state["up_1.conv_1.weight_orig"].shape[0],
        middle_blocks=_count(state, "G_middle_{}.conv_0.weight_orig"),
        spade_hidden=state["up_0.norm_0.mlp_shared.0.weight"].shape[0],
        upscale=math.isqrt(state["conv_img.0.weight"].shape[0] // 3),
    )


def _mlp(state: State) -> tuple[int, ...]:
    layers = [state[f"mlp.{2 * i}.weight"] for i in range(sum(k.endswith(".weight") for k in state))]
    return (layers[0].shape[1], *(w.shape[0] for w in layers))
