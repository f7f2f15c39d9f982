"""Redo: what a run does again is said beforehand, with the setting that is to blame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from smallworld import Silent, World

from pipeline.config import RunConfig, fingerprints
from pipeline.ledger import STAGES, Ledger, LedgerWriter
from pipeline.redo import foresee, remember
from pipeline.run import foresee_run
from pipeline.storage import read_run_file
from schemas.ids import file_digest
from stages.gates import FaceGates
from stages.meshwarp import MeshWarpConfig


def run_of(root: Path, config: RunConfig, **changes: object) -> RunConfig:
    """The config of the run at `root`, changed."""
    return replace(config, run=str(root), **changes)  # type: ignore[arg-type]


def foresaid(root: Path, config: RunConfig, world: World) -> list[str]:
    """What a run at `root` with this config would say."""
    watcher = Silent()
    foresee_run(replace(config, run=str(root)), base=world.base, watcher=watcher)
    return watcher.said


def test_the_same_config_does_nothing_again(copied: Path, world: World) -> None:
    assert foresaid(copied, world.config, world) == []


def test_a_threshold_is_decided_again_and_nothing_is_measured(copied: Path, world: World) -> None:
    config = replace(world.config, gates=replace(world.config.gates, min_face_px=50))
    assert foresaid(copied, config, world) == [
        f"gates.min_face_px {FaceGates().min_face_px} -> 50: verdicts on clips are taken again, from the scores that are there"
    ]


def test_another_crop_does_the_faces_and_all_after_them_again(copied: Path, world: World) -> None:
    config = replace(world.config, faces=replace(world.config.faces, crop_scale=2.0))
    units = {stage: len(Ledger(copied).read(stage, fingerprints(world.config)[stage])) for stage in STAGES}
    assert foresaid(copied, config, world) == [
        f"ingest: {units['ingest']} stand",
        f"faces: {units['faces']} again: faces.crop_scale 2.2 -> 2.0",
        f"portraits: {units['portraits']} again: faces.crop_scale 2.2 -> 2.0",
        f"motion: {units['motion']} again: after faces",
        f"reenact: {units['reenact']} again: after motion; after portraits",
        f"regions: {units['regions']} again: after reenact",
    ]


def test_another_reenactor_leaves_the_faces(copied: Path, world: World) -> None:
    changed = replace(world.config.reenactor, meshwarp=_other(world.config.reenactor.meshwarp))
    said = foresaid(copied, replace(world.config, reenactor=changed), world)
    assert [line.split(":")[0] for line in said if "again" in line] == ["motion", "reenact", "regions"]
    assert all("stand" in line and "again" not in line for line in said if line.startswith(("ingest", "faces", "portraits")))
    assert "reenactor.meshwarp." in said[3]


def _other(config: MeshWarpConfig) -> MeshWarpConfig:
    name, value = next((n, v) for n, v in vars(config).items() if isinstance(v, float))
    return replace(config, **{name: value + 0.5})


def test_a_change_that_was_interrupted_is_still_explained(copied: Path, world: World) -> None:
    """The killed session wrote run.yaml and did half of the work; going back explains nothing, since nothing is to be done."""
    config = run_of(copied, world.config, faces=replace(world.config.faces, crop_scale=2.0))
    world.run(str(copied), Silent(), until="prepare", faces=config.faces)
    again = foresaid(copied, config, world)
    assert next(line for line in again if line.startswith("faces")).endswith("stand")
    assert [line for line in again if line.startswith("reenact")] and "after" not in again[0]
    assert foresaid(copied, world.config, world) == []


@pytest.mark.slow
def test_units_that_the_present_settings_do_not_give_are_not_done_again(copied: Path, world: World) -> None:
    """Another length of clips gives other clips: those of before are history, and so they are said to be only while it changes."""
    changes = {"faces": replace(world.config.faces, max_clip_s=0.9, min_clip_s=0.5)}
    assert any("again" in line for line in foresaid(copied, replace(world.config, **changes), world))
    world.run(str(copied), Silent(), **changes)
    old = {r.unit for r in Ledger(copied).history("motion")} - set(
        Ledger(copied).read("motion", fingerprints(replace(world.config, **changes))["motion"])
    )
    assert old
    assert foresaid(copied, replace(world.config, **changes), world) == []


def test_without_the_old_settings_it_says_so(copied: Path, world: World) -> None:
    prints = fingerprints(world.config)
    record = next(iter(Ledger(copied).read("ingest", prints["ingest"]).values()))
    writer = LedgerWriter(copied, "ingest")
    writer.add(replace(record, unit="another", fingerprint="of long ago"))
    writer.flush()
    before = read_run_file(copied) | {"history": [{"fingerprints": dict.fromkeys(STAGES, "of yesterday"), "config": {}}]}
    assert foresee(copied, world.config, before, lambda: {"ingest": {"another"}})[0].startswith(
        "ingest: 1 again: made with settings that are not on record, "
    )


def test_what_an_older_run_did_not_know_was_as_it_is_by_default(copied: Path, world: World) -> None:
    before = read_run_file(copied)
    older = {k: v for k, v in before["config"].items() if k not in ("identity", "controls")}
    older["faces"] = {k: v for k, v in older["faces"].items() if k not in ("everyone", "digest")}
    older["gates"] = {k: v for k, v in older["gates"].items() if k != "max_clipped"}
    changed = run_of(copied, world.config, faces=replace(world.config.faces, crop_scale=2.0), gates=FaceGates(max_clipped=0.4))
    said = foresee(copied, changed, before | {"config": older}, dict)
    assert [s.split(": ", 2)[-1] for s in said if s.startswith("faces")] == ["faces.crop_scale 2.2 -> 2.0"]
    assert [s.split(":")[0] for s in said if s.startswith("gates")] == ["gates.max_clipped 0.5 -> 0.4"]


def test_history_holds_each_state_once() -> None:
    a, b = {"fingerprints": {"x": "1"}, "config": {"k": 1}}, {"fingerprints": {"x": "2"}, "config": {"k": 2}}
    assert remember(a, {"x": "1"}) == []
    assert remember(a, {"x": "2"}) == [a]
    assert remember({**b, "history": [a]}, {"x": "2"}) == [a]
    assert remember({**b, "history": [a]}, {"x": "1"}) == [b]
    assert remember({**a, "history": [b]}, {"x": "3"}) == [b, a]


def test_a_dry_run_says_it_and_changes_nothing(copied: Path, world: World, tmp_path: Path) -> None:
    def state() -> dict[str, str]:
        return {str(p.relative_to(copied)): file_digest(p) for p in copied.rglob("*") if p.is_file()}

    before, watcher = state(), Silent()
    foresee_run(run_of(copied, world.config, faces=replace(world.config.faces, crop_scale=2.0)), base=world.base, watcher=watcher)
    assert state() == before
    assert "faces.crop_scale 2.2 -> 2.0" in watcher.said[1]
    assert dict(watcher.steps)["prepare"] > 0
    watcher = Silent()
    foresee_run(run_of(copied, world.config), base=world.base, watcher=watcher)
    assert watcher.said == [] and watcher.steps == [("prepare", 0), ("generate", 0)]
    foresee_run(run_of(tmp_path / "new", world.config), base=world.base, watcher=watcher)
    assert not (tmp_path / "new").exists()


def test_a_run_says_it_before_it_begins(copied: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Silent()
    world.run(str(copied), watcher, gates=replace(world.config.gates, min_face_px=50))
    assert watcher.said[0].startswith("gates.min_face_px")
    assert yaml.safe_load((copied / "run.yaml").read_text())["history"] == []
