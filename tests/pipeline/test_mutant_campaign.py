"""The short form of the campaign with mutated and hostile files, and whether its checks see what they are there to see."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
sys.path.append(str(REPO))  # campaigns/ is no part of the installed package

from campaigns.mutants import _CONFIG, check_folder, check_outcomes, make_clips, make_mutants, temporaries_in  # noqa: E402
from pipeline import tables  # noqa: E402
from pipeline.config import RunConfig  # noqa: E402
from schemas.config import parse_config  # noqa: E402

_BOUND_S = 500.0  # it takes a fifth of that on two idle CPUs


@pytest.mark.slow
def test_twenty_mutants_and_all_hostile_files_break_no_promise() -> None:
    """In a process of its own, so that it starts and stops a Ray of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "campaigns.mutants", "--count", "20", "--seed", "1"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=_BOUND_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 promises broken" in done.stdout


def test_mutants_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", frames=3)
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        made.append([p.read_bytes() for p in make_mutants(clips, tmp_path / name, 2 * len(clips), random.Random(seed))])
    assert made[0] == made[1] != made[2]
    assert made[0][: len(clips)] != [p.read_bytes() for p in clips]


def test_the_checker_sees_what_was_lost_doubled_or_nameless(tmp_path: Path) -> None:
    root, uri = tmp_path / "run", str(tmp_path / "a.mp4")
    verdict = {"outcome": "rejected", "reason": "not_media"}
    row = {"source": "s", "uri": uri, "kind": "clip", **verdict}
    unit = {"unit": "s", "kind": "source", "source_uri": uri, "stage": "ingest", "message": "", **verdict}

    def check(sources: list[dict], outcomes: list[dict]) -> list[str]:
        tables.save(root, "sources", sources)
        tables.save(root, "outcomes", outcomes)
        return check_outcomes(root, [Path(uri)])

    assert check([row], [unit]) == []
    for sources, outcomes in (
        ([], []),
        ([row, row], [unit]),
        ([row, {**row, "uri": "another"}], [unit]),
        ([row], [unit, unit]),
        ([{**row, "outcome": ""}], [unit]),
        ([{**row, "reason": "because"}], [unit]),
        ([{**row, "reason": ""}], [unit]),
        ([{**row, "outcome": "failed", "reason": "error"}], [unit]),
        ([row], [{**unit, "outcome": "failed", "reason": "error"}]),
    ):
        assert len(check(sources, outcomes)) == 1, (sources, outcomes)


@pytest.mark.parametrize("name", ["tables/.sources.parquet.tmp-1", "ledger/ingest/open/s-1-2", "artifacts/ingest/00/s/f-1/sound.s16"])
def test_the_checker_sees_what_is_left_in_the_folder(tmp_path: Path, name: str) -> None:
    config = parse_config(RunConfig, _CONFIG)
    assert check_folder(tmp_path, config) == []
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert len(check_folder(tmp_path, config)) == 1


def test_the_checker_sees_processes_and_temporary_files_that_are_left(tmp_path: Path) -> None:
    with temporaries_in(tmp_path / "tmp", patience_s=0.5) as left:
        assert left() == []
        sleeper = subprocess.Popen(["sleep", "60"])
        try:
            (tmp_path / "tmp" / "x").touch()
            assert [f"process {sleeper.pid} (sleep) is left", f"{tmp_path}/tmp/x: a temporary file is left"] == left()
        finally:
            sleeper.kill()
            sleeper.wait()
    assert os.environ.get("TMPDIR") != str(tmp_path / "tmp")
