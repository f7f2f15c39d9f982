"""A whole run over good and bad input: every unit has an outcome, and nothing that happens on the way changes the bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from faceclips import moving_face, write_clip
from smallworld import CONFIG, EXPECTED, PEOPLE, Finished, Silent, World

from campaigns.kills import compare
from pipeline.config import RayConfig, fingerprints
from pipeline.ledger import Ledger
from pipeline.status import status
from pipeline.storage import exclusive
from pipeline.tables import load
from pipeline.verify import diff, verify
from schemas.ids import file_digest
from schemas.sample import MEMBERS, SampleInfo, decode_controls, decode_image, read_index, read_members
from schemas.video import decode_video
from stages.gates import FaceGates

CROSSPAIR = str(Path(sys.executable).with_name("crosspair"))


def crosspair(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CROSSPAIR, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def outcomes(root: Path) -> dict[str, tuple[str, str]]:
    return {Path(r["uri"]).name: (r["outcome"], r["reason"]) for r in load(root, "sources")}


def test_every_source_has_the_outcome_that_a_person_would_give_it(finished: Finished) -> None:
    assert outcomes(finished.root) == EXPECTED


def test_the_sum_of_outcomes_is_the_sum_of_inputs(finished: Finished) -> None:
    assert finished.summary.sources == dict(Counter(o for o, _ in EXPECTED.values()))
    assert finished.summary.reasons == dict(Counter(r for _, r in EXPECTED.values() if r))


def test_the_pairs_are_those_of_the_people_there_are(finished: Finished) -> None:
    pairs = load(finished.root, "pairs")
    assert len(pairs) == 8 and finished.summary.pairs == {"done": 8} and finished.summary.samples == 8
    assert all(p["performer"] != p["appearance"] for p in pairs)
    assert {p["performer"] for p in pairs} == set(PEOPLE.values())


def test_a_finished_run_verifies(finished: Finished) -> None:
    assert verify(finished.root) == []
    done = crosspair("verify", finished.root)
    assert done.returncode == 0, done.stdout


def test_every_unit_is_told_of_as_it_ends(finished: Finished) -> None:
    assert [name for name, _ in finished.watcher.steps] == ["prepare", "plan", "generate", "pack"]
    told = Counter(stage for stage, _, _ in finished.watcher.units)
    assert told["ingest"] == 12
    assert dict(finished.watcher.steps)["generate"] == told["motion"] + told["reenact"] + told["regions"] == 4 + 8 + 8


def test_samples_hold_together(finished: Finished) -> None:
    """One length for target, driving, outlines, controls and sound; the source is a frame of the target's person."""
    for row in read_index(finished.shards).to_pylist():
        data = read_members(finished.shards, row, MEMBERS)
        info = SampleInfo.decode(data["json"])
        target, driving = decode_video(data["target.mp4"]), decode_video(data["driving.mp4"])
        assert target.shape == driving.shape == (info.frames, 128, 128, 3)
        assert (info.frames, info.fps, info.size_px) == (row["frames"], row["fps"], row["size_px"]) == (info.frames, 25, 128)
        assert decode_image(data["source.png"]).shape == (128, 128, 3)
        assert {v.shape[0] for v in decode_controls(data["controls.npz"]).values()} == {info.frames}
        assert ("audio.flac" in data) == info.has_audio == row["has_audio"]
        assert info.key == row["sample"] and "." not in info.key
        assert info.synthetic and info.generator == "meshwarp" and info.licence == "public domain"
        assert abs(target.astype(int) - driving).mean() > 5  # another person


def test_nothing_is_written_beside_the_sources(finished: Finished, world: World) -> None:
    names = {p.name for p in (world.base / "clips").iterdir()} | {p.name for p in (world.base / "images").iterdir()}
    assert names == set(EXPECTED) - {"vanished.mp4"}


def test_no_artifact_is_left_that_no_record_names(finished: Finished) -> None:
    named = set()
    for path in (finished.root / "ledger").glob("*/*.jsonl"):
        named |= {json.loads(line)["folder"] for line in path.read_text().splitlines()}
    on_disk = {str(p.relative_to(finished.root)) for p in (finished.root / "artifacts").glob("*/*/*/*")}
    assert on_disk == named - {""}


def test_a_second_run_does_nothing_and_changes_nothing(finished: Finished, world: World) -> None:
    before, watcher = files(finished.root), Silent()
    assert world.run("run", watcher) == finished.summary
    assert files(finished.root) == before
    assert watcher.units == [] and watcher.steps == [("prepare", 0), ("plan", 0), ("generate", 0), ("pack", 8)]


def test_status_counts_what_was_done(finished: Finished) -> None:
    done = crosspair("status", finished.root, "--json")
    assert done.returncode == 0
    state = json.loads(done.stdout)
    assert state["stages"]["ingest"] == {"done": 7, "rejected": 5, "failed": 0, "quarantined": 0, "left": 0}
    assert state["stages"]["reenact"] == {"done": 8, "rejected": 0, "failed": 0, "quarantined": 0, "left": 0}
    assert all(s["left"] == 0 for s in state["stages"].values())
    assert state["reasons"]["no_face"] == 2
    assert state == json.loads(json.dumps(status(finished.root)))


def test_status_names_every_stage_while_some_have_not_begun(copied: Path) -> None:
    """And a unit that took hours does not divide by zero."""
    shutil.rmtree(copied / "ledger/motion")
    for path in (copied / "ledger/ingest").glob("*.jsonl"):
        raws = [{k: v for k, v in json.loads(line).items() if k != "crc32"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**r, "seconds": 1e9}) + "\n" for r in raws))
    state = status(copied)
    assert list(state["stages"])[:7] == ["ingest", "faces", "portraits", "identity", "motion", "reenact", "regions"]
    assert state["stages"]["motion"]["left"] == 4 and state["seconds_left"] == -1.0


def write_config(world: World, name: str) -> Path:
    path = world.base / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "run": name}))
    return path


def test_steps_can_be_taken_one_by_one(finished: Finished, world: World) -> None:
    """Starting from a copy, so that nothing is rendered: each step stops where it says."""
    shutil.copytree(finished.root, world.base / "steps")
    shutil.rmtree(world.base / "steps" / "shards")
    assert world.run("steps", until="prepare").samples == 0
    assert world.run("steps", until="generate").samples == 0
    assert world.run("steps") == replace(finished.summary, shards=str(world.base / "steps" / "shards" / "meshwarp"))
    assert diff(finished.root, world.base / "steps") == []
    with pytest.raises(ValueError, match="prepare, plan, generate, pack"):
        world.run("steps", until="nowhere")


def test_on_ray_the_bytes_are_the_same(finished: Finished, world: World, ray_session: None) -> None:
    """With two workers a stage, where the other run had none."""
    watcher = Silent()
    assert replace(world.run("on_ray", watcher, ray=RayConfig(workers=2)), shards="") == replace(finished.summary, shards="")
    assert compare(finished.root, world.base / "on_ray") == []
    assert Counter(watcher.units) == Counter(finished.watcher.units) and watcher.steps == finished.watcher.steps


def test_a_changed_threshold_decides_again_and_measures_nothing(finished: Finished, world: World) -> None:
    """The clip with the smallest face goes, and its samples with it; back with the old threshold it is as before."""
    root = world.base / "strict"
    shutil.copytree(finished.root, root)
    clips = sorted(load(root, "clips"), key=lambda c: c["scores"]["face_px"])
    limit = int((clips[0]["scores"]["face_px"] + clips[1]["scores"]["face_px"]) / 2) + 1
    small = {c["clip"] for c in clips if c["scores"]["face_px"] < limit}
    assert 0 < len(small) < 4
    ledger, watcher = files(root / "ledger"), Silent()
    summary = world.run("strict", watcher, gates=FaceGates(min_face_px=limit))
    new = {n: d for n, d in files(root / "ledger").items() if n not in ledger}
    assert not any(n.startswith(("ingest", "faces", "portraits", "motion")) for n in new)
    assert {r["clip"] for r in load(root, "clips") if r["reason"] == "face_too_small"} == small
    assert summary.reasons["face_too_small"] == len(small)
    rows = read_index(root / "shards" / "meshwarp").to_pylist()
    assert rows and not {r["clip"] for r in rows} & small
    assert verify(root) == []
    world.run("strict")
    again, first = ({r["sample"]: r["digest"] for r in read_index(d).to_pylist()} for d in (root / "shards" / "meshwarp", finished.shards))
    assert again == first
    assert verify(root) == []


def test_a_new_clip_adds_a_generation_and_leaves_the_old_one(finished: Finished, world: World) -> None:
    root = world.base / "grown"
    shutil.copytree(finished.root, root)
    shutil.copytree(world.base / "clips", world.base / "more", symlinks=True)
    newcomer = world.base / "more" / "z_new.mp4"
    write_clip(newcomer, (p[:, :, ::-1].copy() for p in moving_face("hopper", 30)))
    before = {r["pair"]: r for r in load(root, "pairs")}
    tars = {p.name: file_digest(p) for p in (root / "shards" / "meshwarp").glob("*.tar")}
    watcher = Silent()
    world.run("grown", watcher, clips=["clips.csv", "clips", str(newcomer)])
    after = {r["pair"]: r for r in load(root, "pairs")}
    assert {k: after[k] for k in before} == before
    assert {r["generation"] for k, r in after.items() if k not in before} == {1} and len(after) == len(before) + 2
    assert Counter(s for s, _, _ in watcher.units) == {"ingest": 1, "faces": 1, "motion": 1, "reenact": 2, "regions": 2}
    assert {p.name: file_digest(p) for p in (root / "shards" / "meshwarp").glob("*.tar") if p.name in tars} == tars
    assert verify(root) == []


def test_only_what_is_due_is_made_of_what_was_lost(finished: Finished, world: World) -> None:
    """One pair of a clip whose motion is gone too, as after a kill before its record; one of a clip whose motion is there; one rendered."""
    root = world.base / "lost"
    shutil.copytree(finished.root, root)
    ledger, prints, pairs = Ledger(root), fingerprints(world.config), load(root, "pairs")
    without, having = pairs[0], next(p for p in pairs if p["clip"] != pairs[0]["clip"])
    rendered = next(p for p in pairs if p not in (without, having))
    ledger.forget("motion", prints["motion"], {without["clip"]})
    ledger.forget("reenact", prints["reenact"], {without["pair"], having["pair"]})
    ledger.forget("regions", prints["regions"], {without["pair"], having["pair"], rendered["pair"]})
    watcher = Silent()
    world.run("lost", watcher)
    assert Counter(watcher.units) == {("motion", "done", ""): 1, ("reenact", "done", ""): 2, ("regions", "done", ""): 3}
    assert dict(watcher.steps)["generate"] == 6
    assert diff(finished.root, root) == [] and verify(root) == []


def test_a_clip_that_vanished_since_stays_in_the_books(finished: Finished, world: World) -> None:
    root = world.base / "fewer"
    shutil.copytree(finished.root, root)
    world.run("fewer", clips=["clips/b_hopper.mp4"])
    assert outcomes(root) == EXPECTED
    assert diff(finished.root, root) == []


def test_failed_units_are_due_again_when_asked_for(finished: Finished, world: World) -> None:
    root = world.base / "retried"
    shutil.copytree(finished.root, root)
    (segment,) = [p for p in (root / "ledger/regions").glob("*.jsonl") if p.stat().st_size][:1]
    lines = segment.read_text().splitlines()
    raw = {k: v for k, v in json.loads(lines[0]).items() if k != "crc32"}
    lines[0] = json.dumps({**raw, "outcome": "failed", "reason": "error", "folder": "", "digests": {}, "data": {}, "children": []})
    segment.write_text("\n".join(lines) + "\n")
    assert world.run("retried").pairs == {"done": 7, "failed": 1}
    assert verify(root) == []
    assert "0 units" in crosspair("retry", root, "--reason", "timeout").stdout
    assert "1 units are due" in crosspair("retry", root).stdout
    assert world.run("retried").pairs == {"done": 8}
    assert verify(root) == []


def test_an_attempt_left_open_by_a_kill_is_closed_by_the_next_run(finished: Finished, world: World) -> None:
    root = world.base / "stale"
    shutil.copytree(finished.root, root)
    unit = load(root, "clips")[0]["shot"]
    (root / "ledger/faces/open" / f"{unit}-session-1").touch()
    assert any("an attempt without an outcome" in p for p in verify(root))
    world.run("stale")
    assert verify(root) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "none.yaml"), "none.yaml"),
        (("verify", "nowhere"), "run.yaml is missing"),
        (("status", "nowhere"), "run.yaml is missing"),
        (("retry", "nowhere"), "run.yaml is missing"),
        (("diff", "nowhere", "nowhere"), "holds no shards"),
    ],
)
def test_what_a_user_can_mend_is_one_line(arguments: tuple[str, ...], says: str) -> None:
    done = crosspair(*arguments)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_a_slip_in_the_config_is_told_before_anything_is_done(world: World) -> None:
    config = write_config(world, "slip")
    done = crosspair("run", config, "--set", "vidoe.fps=3")
    assert done.returncode == 2 and "did you mean 'video'" in done.stderr
    assert not (world.base / "slip").exists()


def test_two_runs_at_once_on_one_folder_are_refused(finished: Finished, world: World) -> None:
    with exclusive(finished.root), pytest.raises(ValueError, match="another crosspair process"):
        world.run("run")


def test_tables_can_be_read_by_anyone(finished: Finished) -> None:
    rows = pq.read_table(finished.root / "tables/outcomes.parquet").to_pylist()
    keys = Counter((r["unit"], r["stage"]) for r in rows)
    assert max(keys.values()) == 1
    assert {r["outcome"] for r in rows} == {"done", "rejected"}
    assert {"sources", "portraits", "clips", "identities", "known", "pairs", "samples", "outcomes"} == {
        p.stem for p in (finished.root / "tables").glob("*.parquet")
    }
