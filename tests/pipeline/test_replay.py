"""Replay: a unit's stage again, in the foreground, and nothing of it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from smallworld import Finished
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.ledger import Ledger
from pipeline.replay import find
from pipeline.storage import read_run_file
from schemas.outcomes import Rejection


def units(root: Path, stage: str, outcome: str = "done") -> list[str]:
    records = Ledger(root).read(stage, read_run_file(root)["fingerprints"][stage])
    return sorted(u for u, r in records.items() if r.outcome == outcome)


@pytest.mark.parametrize("stage", ["ingest", "faces", "portraits", "motion", "reenact", "regions"])
def test_every_stage_gives_what_it_gave(finished: Finished, stage: str) -> None:
    unit = units(finished.root, stage)[0]
    record = Ledger(finished.root).read(stage, read_run_file(finished.root)["fingerprints"][stage])[unit]
    before = sorted(p for p in finished.root.rglob("*"))
    result = find(finished.root, unit, stage).run()
    assert result["files"] == record.digests
    assert {k: record.data[k] for k in result["data"]} == pytest.approx(result["data"])
    assert sorted(p for p in finished.root.rglob("*")) == before


def test_a_rejected_unit_is_rejected_again(finished: Finished) -> None:
    unit = units(finished.root, "ingest", "rejected")[0]
    with pytest.raises(Rejection):
        find(finished.root, unit).run()


def test_the_command_shows_result_rejection_and_error(copied: Path) -> None:
    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["replay", str(copied), *words])
        return done.exit_code, done.output

    good, bad = units(copied, "regions")[0], units(copied, "ingest", "rejected")[0]
    code, said = call(good, "--stage", "regions")
    assert code == 0 and json.loads(said)["unit"] == good
    code, said = call(bad)
    assert code == 1 and said.startswith("rejected: ")
    motion = units(copied, "motion")[0]
    for target in copied.glob(f"artifacts/faces/*/*/*/{motion}.target.mp4"):
        target.write_bytes(b"damaged")
    for track in copied.glob(f"artifacts/faces/*/*/*/{motion}.track.npz"):
        track.write_bytes(b"damaged")
    code, said = call(motion, "--stage", "motion")
    assert code == 1 and "track.npz" in said and "Traceback" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nobody",), "no unit nobody"),
        (("nobody", "faces"), "stage faces has no unit nobody"),
        (("x", "dance"), "--stage dance: one of ingest"),
    ],
)
def test_what_is_not_there_is_told(finished: Finished, arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        find(finished.root, *arguments)
