"""LivePortrait's published folder: any width loads, and errors name the file, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tinyportrait import TINY
from torch import Tensor

from model.liveportrait import OFFICIAL, LivePortrait, LivePortraitConfig
from model.liveportrait_generator import GeneratorConfig, SpadeGenerator
from model.liveportrait_weights import BASE_FILES, RETARGETING_FILE, load_liveportrait


@pytest.fixture(scope="module")
def tiny() -> LivePortrait:
    torch.manual_seed(0)
    return LivePortrait(TINY).eval()


@pytest.fixture
def folder(tiny: LivePortrait, tmp_path: Path) -> Path:
    """Random weights in the published layout."""
    for name, file in BASE_FILES.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        torch.save(dict(tiny.get_submodule(name).state_dict()), tmp_path / file)
    parts = {"retarget_shoulder": tiny.stitching, "retarget_mouth": tiny.lip, "retarget_eye": tiny.eye}
    wrapper = {k: {f"module.{n}": v for n, v in net.state_dict().items()} for k, net in parts.items()}
    (tmp_path / RETARGETING_FILE).parent.mkdir()
    torch.save(wrapper, tmp_path / RETARGETING_FILE)
    return tmp_path


def test_any_width_loads_with_its_sizes_read_off_the_tensors(tiny: LivePortrait, folder: Path) -> None:
    for config in (None, TINY):
        loaded = load_liveportrait(folder, config)
        assert loaded.config == TINY and not loaded.training
        state = loaded.state_dict()
        assert all(torch.equal(state[k], v) for k, v in tiny.state_dict().items())


@pytest.mark.parametrize("file", [*BASE_FILES.values(), RETARGETING_FILE])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file}: not found.*put the folders base_models and retargeting_models there"):
        load_liveportrait(folder)


@pytest.mark.parametrize("file", [*BASE_FILES.values(), RETARGETING_FILE])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(folder: Path, file: str, part: float) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=rf"{file}: expected a PyTorch file.*truncated.*download the file again"):
        load_liveportrait(folder)


class Surprise:
    """What a hostile file may hold: an object whose unpickling runs code."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("executed",)


def test_a_file_that_holds_objects_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"first.conv.weight": Surprise()}, folder / BASE_FILES["appearance"])
    with pytest.raises(ValueError, match="tensors and nothing else"):
        load_liveportrait(folder)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", BASE_FILES)
def test_swapped_files_are_named(folder: Path, name: str) -> None:
    other = "motion" if name != "motion" else "appearance"
    (folder / BASE_FILES[name]).write_bytes((folder / BASE_FILES[other]).read_bytes())
    with pytest.raises(ValueError, match=rf"{BASE_FILES[name]}: expected LivePortrait's {name} network"):
        load_liveportrait(folder)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_loads_or_is_named(folder: Path, seed: int) -> None:
    """torch's older format has no checksum: damage may pass as other numbers, but never as another kind of error."""
    path = folder / BASE_FILES["appearance"]
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[np.random.default_rng(seed).integers(0, 2000, 3)] ^= 0x55
    path.write_bytes(data.tobytes())
    try:
        load_liveportrait(folder)
    except ValueError as e:
        assert BASE_FILES["appearance"] in str(e)


def damage(folder: Path, file: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = torch.load(folder / file, weights_only=True)
    change(state)
    torch.save(state, folder / file)


@pytest.mark.parametrize("config", [None, TINY])
def test_missing_unexpected_and_wrongly_shaped_tensors_are_named(folder: Path, config: LivePortraitConfig | None) -> None:
    file = BASE_FILES["warping"]
    damage(folder, file, lambda s: [s.pop("fourth.bias"), s.update(extra=torch.zeros(1)), s.update({"third.conv.bias": torch.zeros(9)})])
    with pytest.raises(ValueError) as e:
        load_liveportrait(folder, config)
    for part in (file, "1 missing: fourth.bias", "1 unexpected: extra", "1 wrong shape: third.conv.bias (9,) for (8,)"):
        assert part in str(e.value)


def test_another_width_than_the_config_says_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"appearance_feature_extractor.pth: .*wrong shape: first.conv.weight \(4, 3, 3, 3\) for \(64, 3, 3, 3\)"
    ):
        load_liveportrait(folder, OFFICIAL)


def test_files_of_two_models_are_refused(folder: Path) -> None:
    other = SpadeGenerator(GeneratorConfig(in_channels=6, out_channels=4, middle_blocks=1, spade_hidden=6))
    torch.save(dict(other.state_dict()), folder / BASE_FILES["generator"])
    with pytest.raises(ValueError, match="files of one model: channels from warping to generator do not fit together: 8 and 6"):
        load_liveportrait(folder)


def test_a_wrapper_without_one_of_its_networks_is_named(folder: Path) -> None:
    damage(folder, RETARGETING_FILE, lambda s: s.pop("retarget_mouth"))
    with pytest.raises(ValueError, match=rf"{RETARGETING_FILE}: expected a dict of .*retarget_mouth is missing"):
        load_liveportrait(folder)
