"""A short form of the kill campaign, and its judge: what a kill could do wrong does not pass unseen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from smallworld import Finished, World

from campaigns.kills import campaign, compare


@pytest.mark.timeout(900)
def test_a_few_kills_lose_nothing() -> None:
    """`make campaign` kills a hundred times."""
    said: list[str] = []
    report = campaign(4, 4, said.append)
    assert report.violations == [], "\n".join(said)
    assert len(report.kills) == 4 and report.runs >= 1 and report.units > 20
    assert len(said) == 6  # the undisturbed run, each kill, the sum


def test_a_finished_run_is_like_itself(finished: Finished) -> None:
    assert compare(finished.root, finished.root) == []


def without_a_record(root: Path) -> None:
    path = next((root / "ledger" / "regions").glob("*.jsonl"))
    others = path.read_text().splitlines(keepends=True)[1:]
    path.write_text("".join(others)) if others else path.unlink()


def quarantined(root: Path) -> None:
    path = next((root / "ledger" / "motion").glob("*.jsonl"))
    lines = path.read_text().splitlines()
    raw = {k: v for k, v in json.loads(lines[0]).items() if k != "crc32"}
    lines[0] = json.dumps(raw | {"outcome": "quarantined", "reason": "worker_died"})
    path.write_text("\n".join(lines) + "\n")


def with_an_artifact_of_a_killed_worker(root: Path) -> None:
    winner = next((root / "artifacts" / "faces").glob("*/*/*"))
    (winner.parent / f"{winner.name[:8]}-00000000").mkdir()


def with_a_temporary_file(root: Path) -> None:
    (root / "tables" / ".clips.parquet.tmp-00000000").touch()


def with_a_folder_of_a_replay(root: Path) -> None:
    (root / "replay-00000000").mkdir()


def with_other_bytes(root: Path) -> None:
    path = next((root / "shards").glob("*/*.tar"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_a_tar(root: Path) -> None:
    next((root / "shards").glob("*/*.tar")).unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (without_a_record, "lost"),
        (quarantined, "quarantined"),
        (with_an_artifact_of_a_killed_worker, "no record names it"),
        (with_a_temporary_file, "a temporary file"),
        (with_a_folder_of_a_replay, "left over"),
        (with_other_bytes, "other bytes than in the reference"),
        (without_a_tar, "missing"),
    ],
)
def test_harm_is_seen(finished: Finished, copied: Path, harm: Callable[[Path], None], says: str) -> None:
    harm(copied)
    assert any(says in violation for violation in compare(finished.root, copied))


def test_what_a_killed_worker_left_goes_though_nothing_is_due(finished: Finished, world: World) -> None:
    """As after a kill between the last unit's record and the sweep behind it."""
    root = world.base / "unswept"
    shutil.copytree(finished.root, root)
    for stage in ("faces", "reenact"):
        winner = next((root / "artifacts" / stage).glob("*/*/*"))
        shutil.copytree(winner, winner.parent / f"{winner.name[:8]}-00000000")
    assert len(compare(finished.root, root)) == 2
    world.run("unswept")
    assert compare(finished.root, root) == []
