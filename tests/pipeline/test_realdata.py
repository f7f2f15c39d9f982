"""Clips and pictures that nobody here made: each ends as a person who looks at it would say."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from realtruth import CLIPS, IMAGES, SLACK
from smallworld import Silent

from pipeline.config import RayConfig, RunConfig, fingerprints
from pipeline.ledger import Ledger
from pipeline.run import run
from pipeline.tables import load
from pipeline.verify import verify
from schemas.config import parse_config
from schemas.sample import read_index
from stages.faces import AUDIO, TRACK, read_track
from stages.ingest import TIMING, Timing

pytestmark = pytest.mark.timeout(1800)  # the run counts towards the first test, and machines are busy


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """The run up to its plan, without Ray, and its config."""
    base = tmp_path_factory.mktemp("real")
    data = {
        "run": "run",
        "clips": str(shared / "realdata" / "clips"),
        "portraits": str(shared / "realdata" / "images"),
        "video": {"size_px": 256},
        "pairs": {"per_clip": 1},
        "ray": {"mode": "local"},
    }
    config = parse_config(RunConfig, data)
    run(config, base=base, watcher=Silent(), until="plan")
    return base / "run", config


def verdicts(root: Path) -> dict[str, str]:
    """File name -> `done`, or the reason."""
    return {Path(r["uri"]).name: r["reason"] or r["outcome"] for r in load(root, "sources")}


def accepted(root: Path, name: str) -> list[tuple[int, int]]:
    """First and last source frames of a file's accepted clips."""
    clips = (c for c in load(root, "clips") if Path(c["uri"]).name == name and c["outcome"] == "done")
    return [(c["first_frame"], c["last_frame"]) for c in clips]


def test_every_input_has_an_outcome(real: tuple[Path, RunConfig], shared: Path) -> None:
    with (shared / "realdata" / "MANIFEST.csv").open() as f:
        listed = {Path(r["file"]).name for r in csv.DictReader(f)}
    assert listed == set(CLIPS) | set(IMAGES) == set(verdicts(real[0]))
    assert {r["outcome"] for r in load(real[0], "sources")} == {"done", "rejected"}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_ends_as_a_person_would_say(real: tuple[Path, RunConfig], name: str) -> None:
    assert verdicts(real[0])[name] in CLIPS[name].ends


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_ends_as_a_person_would_say(real: tuple[Path, RunConfig], name: str) -> None:
    assert verdicts(real[0])[name] in IMAGES[name].ends


@pytest.mark.parametrize("name", CLIPS)
def test_accepted_clips_show_one_person_and_as_much_of_them_as_they_must(real: tuple[Path, RunConfig], name: str) -> None:
    clips = accepted(real[0], name)
    for first, last in clips:
        assert any(s.first - SLACK <= first and last <= s.last + SLACK for s in CLIPS[name].spans), (first, last)
    for span in CLIPS[name].spans:
        held = {k for first, last in clips for k in range(first, last + 1)}
        assert len(held & set(range(span.first, span.last + 1))) >= span.must * (span.last + 1 - span.first), span


@pytest.mark.parametrize("name", CLIPS)
def test_pictures_are_upright_and_cuts_are_found(real: tuple[Path, RunConfig], name: str) -> None:
    root, config = real
    truth, row = CLIPS[name], next(r for r in load(root, "sources") if Path(r["uri"]).name == name)
    assert ((row["width"], row["height"]), row["frames"]) == (truth.wh, truth.frames)
    record = Ledger(root).read("ingest", fingerprints(config)["ingest"])[row["source"]]
    begins = [shot["first_frame"] for shot in record.children]
    for cut in truth.cuts:
        assert min(abs(cut - first) for first in begins) <= SLACK


def test_sound_and_picture_are_never_a_frame_apart(real: tuple[Path, RunConfig]) -> None:
    """Each output frame shows what was on screen at its time, however unevenly the source's frames come; the sound is as long."""
    root, _ = real
    uneven = set()
    for clip in (c for c in load(root, "clips") if c["outcome"] == "done"):
        _, frames = read_track(root / clip["folder"] / f"{clip['clip']}.{TRACK}")
        times = Timing.read(root / timing_folder(root, real[1], clip) / TIMING).times
        shown = times[frames[0]] + np.arange(len(frames)) / clip["fps"]
        until = np.r_[times, times[-1] + 0.1][frames + 1]
        late = np.maximum(times[frames] - shown, shown - until)
        assert late.max() < 1 / clip["fps"]
        if clip["has_audio"]:
            with av.open(str(root / clip["folder"] / f"{clip['clip']}.{AUDIO}")) as sound:
                samples = sum(f.samples for f in sound.decode(audio=0))
            assert abs(samples / 16_000 - len(frames) / clip["fps"]) < 1 / clip["fps"]
            uneven |= {Path(clip["uri"]).name} if np.ptp(np.diff(times)) > 0.02 else set()
    assert "pyfeat_face_noface.mov" in uneven and "streamio_awesome_movie.mov" in uneven


def timing_folder(root: Path, config: RunConfig, clip: dict[str, Any]) -> str:
    return str(Ledger(root).read("ingest", fingerprints(config)["ingest"])[clip["source"]].folder)


def segments(root: Path) -> dict[Path, bytes]:
    """What was ever measured of the sources: their stages' records."""
    return {p: p.read_bytes() for stage in ("ingest", "faces", "portraits") for p in (root / "ledger" / stage).rglob("*") if p.is_file()}


def test_the_truth_holds_under_other_thresholds_and_nothing_is_measured_again(real: tuple[Path, RunConfig]) -> None:
    root, config = real
    before = segments(root)
    statues = replace(config.portrait_gates, min_iris_contrast=-2.0)
    strict = replace(config.gates, min_face_px=90, max_yaw_deg=48.0, max_roll_deg=40.0, min_brightness=20.0)
    other = replace(config, gates=strict, portrait_gates=statues)
    try:
        run(other, base=root.parent, watcher=Silent(), until="plan")
        ends = verdicts(root)
        assert ends["lp_s6_terracotta.jpg"] == "done"  # who allows statues has them
        assert not {name: ends[name] for name, truth in (CLIPS | IMAGES).items() if ends[name] not in {*truth.ends, "done"}}
        assert {name for name, truth in (CLIPS | IMAGES).items() if ends[name] == "done" and "done" not in truth.ends} == {
            "lp_s6_terracotta.jpg"
        }
        assert segments(root) == before
    finally:
        run(config, base=root.parent, watcher=Silent(), until="plan")


@pytest.mark.slow
def test_pairs_are_made_and_most_are_good(real: tuple[Path, RunConfig], ray_session: None) -> None:
    """On Ray."""
    root, config = real
    summary = run(replace(config, ray=RayConfig(workers=2)), base=root.parent, watcher=Silent())
    assert verify(root) == []
    assert summary.samples == summary.pairs["done"] == read_index(root / "shards" / "meshwarp").num_rows
    assert summary.pairs["done"] >= 0.8 * sum(summary.pairs.values())
    assert "failed" not in summary.pairs and "quarantined" not in summary.pairs
    assert {o["outcome"] for o in load(root, "outcomes")} <= {"done", "rejected"}, Counter(o["message"] for o in load(root, "outcomes"))
