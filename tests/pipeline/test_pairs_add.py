"""`crosspair pairs add`: new people in a finished run cost the new pairs and nothing else, whatever happens on the way."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faceclips import noise, photograph
from PIL import Image
from smallworld import Finished, Silent, World
from typer.testing import CliRunner

from pipeline import tables
from pipeline.added import note
from pipeline.books import Summary
from pipeline.cli import app
from pipeline.run import add_portraits
from pipeline.sources import IMAGE_SUFFIXES, listing
from pipeline.storage import exclusive
from pipeline.verify import diff, verify
from schemas.ids import file_digest
from schemas.sample import SampleInfo, read_index, read_members
from schemas.store import DiskStore


class Killed(BaseException):
    """As a kill: nothing catches it."""


class KilledAt(Silent):
    """A watcher under which the session dies: as a step begins, or as the first unit of a stage ends."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def step(self, name: str, units: int) -> None:
        super().step(name, units)
        if name == self._where:
            raise Killed(name)

    def unit(self, stage: str, outcome: str, reason: str) -> None:
        super().unit(stage, outcome, reason)
        if stage == self._where:
            raise Killed(stage)


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two new people, and a picture of nobody."""
    base = tmp_path_factory.mktemp("new")
    save(np.ascontiguousarray(photograph("hopper")[:, ::-1]), base / "people/a.png")
    save(np.ascontiguousarray(photograph("astronaut")[:, ::-1]), base / "people/b.png")
    save(next(noise(1, seed=3)), base / "nobody.png")
    return base


def add(root: Path, base: Path, watcher: Silent | None = None, *portraits: str, per_clip: int = 1) -> Summary:
    given = portraits or ("people", "nobody.png")
    return add_portraits(root, given, base=base, per_clip=per_clip, watcher=watcher or Silent())


@pytest.fixture(scope="module")
def grown(finished: Finished, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The finished run with two people more. Tests that change anything work on a copy."""
    root, watcher = tmp_path_factory.mktemp("grown") / "run", Silent()
    shutil.copytree(finished.root, root)
    return Finished(root, add(root, base, watcher), watcher)


def copy_of(run: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.root, tmp_path / "run"))


def test_exactly_the_new_pairs_are_rendered(finished: Finished, grown: Finished) -> None:
    before, after = tables.load_pairs(finished.root), tables.load_pairs(grown.root)
    new = [p for p in after if p.generation == 1]
    assert [p for p in after if p.generation == 0] == before and len(after) == len(before) + len(new)
    assert Counter(p.clip for p in new) == dict.fromkeys({p.clip for p in before}, 1)  # one more for each clip
    uri = {r["portrait"]: Path(r["uri"]).name for r in tables.load(grown.root, "portraits")}
    assert Counter(uri[p.portrait] for p in new) == {"a.png": 2, "b.png": 2}
    done = Counter(stage for stage, outcome, _ in grown.watcher.units if outcome == "done")
    assert done == {"portraits": 2, "reenact": 4, "regions": 4}  # no motion: clips have theirs
    assert grown.summary.pairs == {"done": 12} and grown.summary.samples == 12
    assert verify(grown.root) == []


def test_no_old_byte_changes(finished: Finished, grown: Finished) -> None:
    old, new = files(finished.shards), files(grown.shards)
    assert {name: new[name] for name in old if name.endswith(".tar")} == {n: d for n, d in old.items() if n.endswith(".tar")}
    rows = {r["sample"]: r for r in read_index(grown.shards).to_pylist()}
    assert {r["sample"]: rows[r["sample"]] for r in read_index(finished.shards).to_pylist()} == {
        r["sample"]: r for r in read_index(finished.shards).to_pylist()
    }
    added = [r for r in rows.values() if r["tar"] not in old]
    assert len(added) == 4
    assert {SampleInfo.decode(read_members(grown.shards, r, ("json",))["json"]).generation for r in added} == {1}
    kept = {n: d for n, d in files(finished.root).items() if n.startswith(("artifacts/", "ledger/"))}
    assert kept.items() <= files(grown.root).items()


def test_a_picture_of_nobody_has_an_outcome(grown: Finished) -> None:
    outcomes = {Path(r["source_uri"]).name: (r["outcome"], r["reason"]) for r in tables.load(grown.root, "outcomes")}
    assert outcomes["nobody.png"] == ("rejected", "no_face")
    assert "2 of 3 portraits can appear, 1 no_face" in grown.watcher.said


def test_adding_again_changes_nothing(grown: Finished, base: Path) -> None:
    before, watcher = files(grown.root), Silent()
    assert add(grown.root, base, watcher) == grown.summary
    assert add(grown.root, base / "people", Silent(), "*.png") == grown.summary
    assert files(grown.root) == before and watcher.units == []


def test_the_users_config_goes_on_with_them(grown: Finished, world: World, tmp_path: Path) -> None:
    """It does not name them, and withdraws nothing."""
    root, watcher = copy_of(grown, tmp_path), Silent()
    before = files(root)
    assert world.run(str(root), watcher) == grown.summary.__class__(**vars(grown.summary) | {"shards": str(root / "shards/meshwarp")})
    assert {n for n, d in files(root).items() if before.get(n) != d} <= {"run.yaml"} and watcher.units == []
    (root / "tables/sources.parquet").unlink()
    assert world.run(str(root)).samples == 12  # the table of what was added tells of them too


MOMENTS = ["plan", *(pytest.param(where, marks=pytest.mark.slow) for where in ("prepare", "portraits", "generate", "pack"))]


@pytest.mark.parametrize("where", MOMENTS)
def test_a_kill_in_the_middle_is_finished_in_the_same_generation(
    where: str, finished: Finished, grown: Finished, base: Path, world: World, tmp_path: Path
) -> None:
    root = copy_of(finished, tmp_path)
    with pytest.raises(Killed):
        add(root, base, KilledAt(where))
    assert len(tables.load_pairs(root)) == (12 if where in ("generate", "pack") else 8)
    # The same command, or the user's own next run.
    if where in ("portraits", "plan"):
        world.run(str(root))
    else:
        add(root, base)
    assert files(root / "tables").keys() == files(grown.root / "tables").keys()
    assert tables.pairs(root) == tables.pairs(grown.root) and tables.load(root, "added") == tables.load(grown.root, "added")
    assert files(root / "shards") == files(grown.root / "shards")
    assert verify(root) == [] and diff(root, grown.root) == []


@pytest.mark.slow
def test_more_for_each_clip_is_one_generation_more(grown: Finished, base: Path, tmp_path: Path) -> None:
    root = copy_of(grown, tmp_path)
    assert add(root, base, None, "people", per_clip=2).samples == 16
    more = [p for p in tables.load_pairs(root) if p.generation == 2]
    assert len(more) == 4 and {r["generation"] for r in tables.load(root, "added") if r["uri"].endswith(("a.png", "b.png"))} == {2}
    before = files(root)
    assert add(root, base, None, "people", per_clip=2).samples == 16
    assert files(root) == before


@pytest.mark.slow
def test_what_is_mended_is_dealt_then(grown: Finished, base: Path, tmp_path: Path) -> None:
    root, mine = copy_of(grown, tmp_path), tmp_path / "mine"
    save(next(noise(1, seed=4)), mine / "c.png")
    assert add(root, mine, None, "c.png").samples == 12
    save(photograph("hopper")[20:], mine / "c.png")
    assert add(root, mine, None, "c.png").samples == 16
    assert verify(root) == []


def test_a_folder_names_again_who_appears_already(finished: Finished, world: World, tmp_path: Path) -> None:
    """Those of the config that are in the plan are not new; one that no pair was planned of is."""
    root = copy_of(finished, tmp_path)
    images = world.base / "images"
    rows = note(DiskStore(root), listing(str(images), IMAGE_SUFFIXES, world.base), 1)
    assert {Path(r["uri"]).name for r in rows} == {"group.png", "noface.png", "text.png"}


def test_relative_names_are_those_of_the_caller(finished: Finished, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of(finished, tmp_path)
    (tmp_path / "here/people").mkdir(parents=True)
    for name in ("here/one.png", "here/people/two.png"):
        shutil.copy(base / "nobody.png", tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    done = CliRunner().invoke(app, ["pairs", "add", "../run", "people/*.png", "one.png", "--per-clip", "1"])
    assert done.exit_code == 0, done.output
    assert "0 of 2 portraits can appear, 2 no_face" in done.output and "8 samples in" in done.output and "pairs: 8 done" in done.output
    rows = tables.load(tmp_path / "run", "added")
    assert {r["uri"] for r in rows} == {str(tmp_path / "here" / n) for n in ("people/two.png", "one.png")}
    assert {r["generation"] for r in rows} == {-1}


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda root: shutil.rmtree(root), "no run"),
        (lambda root: (root / "tables/pairs.parquet").unlink(), "not all clips are planned"),
        (lambda root: shutil.rmtree(root / "ledger/faces"), "not all clips are planned"),
        (
            lambda root: (root / "run.yaml").write_text((root / "run.yaml").read_text().replace("crop_scale: 2.2", "crop_scale: 2")),
            "otherwise",
        ),
    ],
)
def test_a_run_that_is_not_ready_is_left_alone(
    break_it: Callable[[Path], object], says: str, finished: Finished, base: Path, tmp_path: Path
) -> None:
    root = copy_of(finished, tmp_path)
    break_it(root)
    before = files(root) if root.exists() else {}
    with pytest.raises(ValueError, match=says):
        add(root, base)
    assert (files(root) if root.exists() else {}) == before


def test_slips_are_told_before_anything_is_done(finished: Finished, base: Path, tmp_path: Path) -> None:
    root = copy_of(finished, tmp_path)
    before = files(root)
    with pytest.raises(ValueError, match="matches no file"):
        add(root, base, None, "people/*.jpeg")
    with pytest.raises(ValueError, match="at least 1"):
        add(root, base, per_clip=0)
    with exclusive(root), pytest.raises(ValueError, match="another crosspair process"):
        add(root, base)
    assert files(root) == before
