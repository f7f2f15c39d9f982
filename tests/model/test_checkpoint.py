"""Checkpoints outlive a kill at any moment, and a damaged one says what to do."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import checkpoint, state
from model.checkpoint import Checkpoints, Recipe, load_model, load_progress, load_recipe, save_export, save_progress, save_recipe
from model.portrait_dit import PortraitConfig, PortraitDiT
from model.workers import Workers

CONFIG = PortraitConfig(layers=1, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=0, frames=2, history=1)
RECIPE = Recipe(model=CONFIG, codec="dct", frame_px=32, mask_dilation=0.01, shift=3.0, history_trained=True)


def content(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "part").mkdir()
        (folder / "part" / "x").write_text(text)

    return write


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def save(checkpoints: Checkpoints, step: int, write: Callable[[Path], object]) -> Path:
    write(checkpoints.begin(step))
    return checkpoints.finish(step)


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Path.replace dies instead of giving the folder, or the pointer, its name."""
    replace_path = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if Path(target).name.startswith({"folder": "step-", "pointer": "latest"}[moment]):
            raise Killed
        return replace_path(self, target)

    monkeypatch.setattr(Path, "replace", dies)


@pytest.mark.parametrize("moment", ["write", "folder", "pointer"])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("again", [4, 6])
def test_a_kill_while_saving_leaves_the_old_one_and_the_next_save_clears_up(
    moment: str, keep: int, again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    save(checkpoints, 3, content("three"))

    def dies(folder: Path) -> None:
        content("six")(folder)
        if moment == "write":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment != "write":
            kill_at(patch, moment)
        save(checkpoints, 6, dies)
    latest = checkpoints.latest()
    assert latest is not None and (latest / "part" / "x").read_text() == "three"

    assert save(checkpoints, again, content("again")) == checkpoints.latest()
    assert (tmp_path / f"step-00000{again}" / "part" / "x").read_text() == "again"
    assert names(tmp_path) == ["latest", *["step-000003"][: keep - 1], f"step-00000{again}"]


def test_after_a_step_back_the_old_future_goes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (100, 200, 300):
        save(checkpoints, step, content(str(step)))
    (tmp_path / "latest").write_text("step-000100\n")
    save(checkpoints, 150, content("150"))
    assert names(tmp_path) == ["latest", "step-000100", "step-000150"]


def test_everything_is_on_the_disk_before_it_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace_path = Path.replace

    def named(self: Path, target: Path) -> Path:
        events.append(f"named {Path(target).name}")
        return replace_path(self, target)

    monkeypatch.setattr(checkpoint, "flush_to_disk", lambda path: events.append(path.name))
    monkeypatch.setattr(Path, "replace", named)
    root = tmp_path / "root"
    save(Checkpoints(root, keep=1), 6, content("six"))
    folder, pointer = events.index("named step-000006"), events.index("named latest")
    assert set(events[:folder]) == {"x", "part", ".partial-step-000006"}
    assert events[folder + 1 : pointer] == ["root", ".latest"]
    assert events[pointer + 1 :] == ["root"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    def write(folder: Path) -> None:
        save_recipe(RECIPE, folder)
        save_progress({"step": 1}, folder)
        state.save(state.weights_of(PortraitDiT(CONFIG), frozen=True), folder / "state", Workers()).result()

    return save(Checkpoints(tmp_path / "checkpoints", keep=1), 1, write)


def test_what_sampling_needs_lies_beside_the_weights(saved: Path) -> None:
    assert load_recipe(saved) == RECIPE
    assert load_model(saved).config == CONFIG and load_progress(saved)["step"] == 1


def test_weights_and_buffers_live_in_memory_of_their_own(saved: Path, tmp_path: Path) -> None:
    checkpoint.export(saved, tmp_path / "export")
    model = load_model(tmp_path / "export")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for path in (tmp_path / "export").rglob("*.safetensors"):
        size = path.stat().st_size
        with path.open("r+b") as f:  # in place, as a mapping would see it
            f.write(b"\xff" * size)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("file", ["portrait.json", "trainer.json", "state/.metadata", "state/__0_0.distcp"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_says_what_to_do(saved: Path, file: str, damage: str) -> None:
    path = saved / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    with pytest.raises(
        ValueError, match=rf"step-000001: not a whole checkpoint.*older one into {saved.parent}/latest, or delete {saved.parent}"
    ):
        load_progress(saved)
        load_model(saved)


@pytest.mark.parametrize("pointed", ["step-000001", ""])
def test_a_missing_checkpoint_says_what_to_do(saved: Path, pointed: str) -> None:
    shutil.rmtree(saved)
    (saved.parent / "latest").write_text(pointed)
    with pytest.raises(ValueError, match=rf"{saved.parent}/latest: names '{pointed}', which is not there; write the name"):
        Checkpoints(saved.parent, keep=1).latest()


class Malice:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('it ran')",)


def test_a_table_of_tensors_that_is_more_is_not_unpickled(saved: Path) -> None:
    (saved / "state" / ".metadata").write_bytes(pickle.dumps(Malice()))
    with pytest.raises(ValueError, match=r"step-000001: not a whole checkpoint.*names builtins\.exec, which no checkpoint of ours does"):
        load_model(saved)


def test_checkpoints_of_earlier_versions_say_so(saved: Path) -> None:
    (saved / "trainer.pt").touch()
    with pytest.raises(ValueError, match="made by an earlier version"):
        load_progress(saved)


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    tensors = {"model.a": torch.arange(1000.0), "model.b": torch.ones(())}
    written = state.save(tensors, tmp_path / "state", Workers())
    for tensor in tensors.values():
        tensor.fill_(7)  # as the next step would
    written.result()
    back = {k: torch.empty_like(v) for k, v in tensors.items()}
    state.load(back, tmp_path / "state", Workers())
    assert torch.equal(back["model.a"], torch.arange(1000.0)) and back["model.b"] == 1
    with pytest.raises(ValueError, match=r"Missing key.*model\.c"):
        state.load({"model.c": torch.empty(1)}, tmp_path / "state", Workers())
    with pytest.raises(ValueError, match="Size mismatch"):
        state.load({"model.a": torch.empty(1)}, tmp_path / "state", Workers())


def test_a_recipe_is_that_of_its_model(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        save_export(PortraitDiT(CONFIG), replace(RECIPE, model=replace(CONFIG, frames=3)), tmp_path)


def test_weights_are_all_there_safe_and_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pickle in their place, none left out, and nothing that the Hub might have under a relative name."""
    model = PortraitDiT(CONFIG)
    save_export(model, RECIPE, tmp_path / "model")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if k != "proj_out.weight"}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing.*proj_out\.weight.*make it again"):
        load_model(tmp_path / "model")
    weights.unlink()
    torch.save(state, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(tmp_path / "model")
    shutil.rmtree(weights.parent)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no model in diffusers' layout"):
        load_model(Path("model"))
