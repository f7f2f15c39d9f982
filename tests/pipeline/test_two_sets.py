"""A second pair set beside the first: the same pairs drawn otherwise, compared one by one; nothing of the first is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from smallworld import Finished, Silent, World
from test_verify import change_table
from typer.testing import CliRunner

from pipeline import tables
from pipeline.cli import app
from pipeline.compare import compare_sets, every_two, sets_of
from pipeline.config import ReenactorConfig, ShardsConfig
from pipeline.report import write_report
from pipeline.verify import diff, verify
from schemas.ids import file_digest
from schemas.sample import read_index
from stages.gates import FaceGates
from stages.meshwarp import MeshWarpConfig

OTHER = {
    "reenactor": ReenactorConfig(meshwarp=MeshWarpConfig(expression_gain=0.7, calibration_rounds=0)),
    "shards": ShardsConfig(name="other", max_mb=1),
}


@pytest.fixture(scope="module")
def both(finished: Finished, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, with a second set. Tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("both") / "run"
    shutil.copytree(finished.root, root)
    assert world.run(str(root), **OTHER).samples == 8
    return root


def tars(root: Path, name: str) -> dict[str, str]:
    return {p.name: file_digest(p) for p in sorted((root / "shards" / name).iterdir())}


def samples(root: Path, name: str) -> list[dict]:
    return [r for r in tables.load(root, "samples") if r["set"] == name]


def test_the_second_set_has_the_same_pairs_and_the_first_is_as_it_was(both: Path, finished: Finished) -> None:
    assert sets_of(both) == ["meshwarp", "other"]
    keys = [set(read_index(both / "shards" / n)["sample"].to_pylist()) for n in ("meshwarp", "other")]
    assert keys[0] == keys[1] and len(keys[0]) == 8
    assert tars(both, "meshwarp") == tars(finished.root, "meshwarp") and tars(both, "other") != tars(both, "meshwarp")
    assert samples(both, "meshwarp") == samples(finished.root, "meshwarp")
    one, other = ({r["pair"]: r["config_fingerprint"] for r in samples(both, n)} for n in ("meshwarp", "other"))
    assert one.keys() == other.keys() and not set(one.values()) & set(other.values())
    assert verify(both) == []


def test_going_back_keeps_the_second(both: Path, world: World, tmp_path: Path) -> None:
    root = Path(shutil.copytree(both, tmp_path / "run"))
    watcher = Silent()
    world.run(str(root), watcher)
    assert watcher.units == [] and tables.load(root, "samples") == tables.load(both, "samples")
    assert diff(root, both) == [] and verify(root) == []
    shutil.rmtree(root / "shards/other")
    world.run(str(root))
    assert {r["set"] for r in tables.load(root, "samples")} == {"meshwarp"} and verify(root) == []


def test_scores_stand_side_by_side(both: Path) -> None:
    found = compare_sets(both, "meshwarp", "other")
    assert (found.both, found.only_a, found.only_b) == (8, [], [])
    scores = {s.score: s for s in found.scores}
    one, other = ({r["pair"]: r["scores"] for r in samples(both, n)} for n in ("meshwarp", "other"))
    errors = np.array([(one[p]["pose_error_deg"], other[p]["pose_error_deg"]) for p in one])
    mine = scores["pose_error_deg"]
    assert (mine.pairs, mine.median_a, mine.median_b) == (8, *np.median(errors, axis=0))
    assert mine.difference == np.median(errors[:, 1] - errors[:, 0]) != 0
    assert (mine.better, mine.worse) == ((errors[:, 1] < errors[:, 0] - 1e-6).sum(), (errors[:, 1] > errors[:, 0] + 1e-6).sum())
    assert scores["yaw_extreme_deg"].better == -1
    back = {s.score: s for s in compare_sets(both, "other", "meshwarp").scores}["pose_error_deg"]
    assert (back.better, back.worse, back.difference) == (mine.worse, mine.better, -mine.difference)


def test_better_means_what_it_should(both: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(both, tmp_path / "run"))

    def set_scores(rows: list[dict]) -> None:
        for r in rows:
            second = r["set"] == "other"
            r["scores"] = {"mouth_correlation": 0.9 if second else 0.5, "size_error": 0.1 if second else 0.02, "eye_correlation": -2.0}
        next(r for r in rows if r["set"] == "other")["scores"]["mouth_correlation"] = -2.0  # not measured

    change_table(root, "samples", set_scores)
    scores = {s.score: s for s in compare_sets(root, "meshwarp", "other").scores}
    assert scores.keys() == {"mouth_correlation", "size_error"}
    assert (scores["mouth_correlation"].pairs, scores["mouth_correlation"].better, scores["mouth_correlation"].worse) == (7, 7, 0)
    assert (scores["size_error"].better, scores["size_error"].worse) == (0, 8)


def test_a_set_whose_rows_an_older_version_lost_is_compared_by_its_index(both: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(both, tmp_path / "run"))
    change_table(root, "samples", lambda rows: [rows.remove(r) for r in list(rows) if r["set"] == "meshwarp"])
    scores = {s.score: s.pairs for s in compare_sets(root, "meshwarp", "other").scores}
    assert scores["pose_error_deg"] == 8 and "yaw_extreme_deg" not in scores


def test_the_command_and_the_report_show_it(both: Path) -> None:
    done = CliRunner().invoke(app, ["diff", str(both), "--sets", "meshwarp", "other"])
    assert done.exit_code == 0, done.output
    assert "8 in both, 0 only in meshwarp, 0 only in other" in done.output and "pose_error_deg" in done.output
    for arguments in ([str(both)], [str(both), str(both), "--sets", "meshwarp", "other"]):
        assert isinstance(CliRunner().invoke(app, ["diff", *arguments]).exception, ValueError)
    with pytest.raises(ValueError, match="holds no pair set third; it has meshwarp, other"):
        compare_sets(both, "meshwarp", "third")
    page = Path(write_report(both)).read_text()
    assert "Pair set <code>other</code> beside <code>meshwarp</code>" in page and page.count("<figure>") == 16
    assert '<td>pairs<br><small class="dim">planned; kept: true enough to train on</small></td><td class="n">8</td>' in page


def test_a_run_with_one_set_has_nothing_to_compare(finished: Finished) -> None:
    assert every_two(finished.root) == []
    assert "beside" not in Path(write_report(finished.root)).read_text()


def test_samples_that_rest_in_another_set_are_told_of(both: Path, world: World, tmp_path: Path) -> None:
    root, watcher = Path(shutil.copytree(both, tmp_path / "run")), Silent()
    world.run(str(root), watcher, portrait_gates=FaceGates(max_yaw_deg=0.0), **OTHER)
    assert any(s.startswith("warning: pair set meshwarp still holds 8 samples") for s in watcher.said)
    assert samples(root, "meshwarp") == samples(both, "meshwarp") and verify(root) == []
