"""Forgetting a person: nothing that derives from him is left, nothing of others is lost, and he does not come back."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from faceclips import moving_face, tone, write_clip
from s3server import S3Server
from smallworld import Finished, Silent, World
from tinynet import tiny_network

from model.stream import ShardStream, StreamConfig
from pipeline import tables
from pipeline.books import Summary
from pipeline.config import RunConfig
from pipeline.derived import Books, derived, read_books
from pipeline.forget import enforce, foresee_forget, forget
from pipeline.ledger import STAGES, Ledger
from pipeline.pack import take_out
from pipeline.report import write_report
from pipeline.run import run
from pipeline.storage import exclusive
from pipeline.tombstones import NAME, Tombstones, read_tombstones, write_tombstones
from pipeline.verify import verify
from schemas.config import parse_config
from schemas.ids import file_digest
from schemas.sample import MEMBERS, read_index, read_members
from schemas.store import DiskStore, ObjectStore, Store, open_store
from schemas.units import SourceFile

CROSSPAIR = Path(sys.executable).with_name("crosspair")
HIS = "collins"  # of smallworld: a clip, and a copy of it of which no manifest says anything


def texts(root: Store) -> Iterator[tuple[str, str]]:
    """All that the files of a run say, unpacked: name of the file, and text."""
    for name in root.names(""):
        data = root.read(name)
        yield name, name
        yield name, data.decode("utf-8", "replace")
        if name.endswith(".parquet"):
            yield name, json.dumps(pq.read_table(io.BytesIO(data)).to_pylist(), default=str)
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    yield name, member.name + tar.extractfile(member).read().decode("utf-8", "replace")  # type: ignore[union-attr]


def traces(root: Path | Store, needles: set[str]) -> set[tuple[str, str]]:
    """Needles that are found anywhere in a run, and where."""
    return {(name, needle) for name, text in texts(open_store(root)) for needle in needles if needle in text}


def needles_of(root: Path | Store, person: str) -> set[str]:
    """Every id, URI and content that the run knows of a person, found by reading the tables with other eyes than `pipeline.derived`."""
    store = open_store(root)
    sources = [r for r in tables.load(store, "sources") if r["identity"] == person]
    contents = {r["content"] for r in sources if r["content"]}
    sources = [r for r in tables.load(store, "sources") if r["identity"] == person or r["content"] in contents]
    clips = [r for r in tables.load(store, "clips") if r["identity"] == person]
    mine = {r["clip"] for r in clips}
    portraits = {r["portrait"] for r in tables.load(store, "portraits") if r["identity"] == person or r["clip"] in mine}
    pairs = {r["pair"] for r in tables.load(store, "pairs") if r["clip"] in mine or r["portrait"] in portraits}
    shots = {r["unit"] for r in tables.load(store, "outcomes") if r["kind"] == "shot" and r["parent"] in {s["source"] for s in sources}}
    ids = {r["source"] for r in sources} | {r["uri"] for r in sources} | {Path(r["uri"]).name for r in sources}
    return ids | contents | mine | portraits | pairs | shots | {f'"{person}"', f": {person}\n"}


def members(shards: Path | Store) -> dict[str, dict[str, bytes]]:
    return {r["sample"]: read_members(shards, r, MEMBERS) for r in read_index(shards).to_pylist()}


def reachable(root: Path) -> set[str]:
    """Artifacts that records of the ledger name, whatever settings those are of."""
    records = [r for stage in STAGES for r in Ledger(root).history(stage)]
    return {f"{r.folder}/{file}" for r in records for file in r.digests}


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_digest(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def needles(finished: Finished) -> set[str]:
    found = needles_of(finished.root, HIS)
    assert len(found) > 12 and all(traces(finished.root, {n}) for n in found if "\n" not in n)
    return found


@pytest.fixture(scope="module")
def forgotten(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, with a report, after forgetting; tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("forgotten") / "run"
    shutil.copytree(finished.root, root)
    write_report(root)
    (root / "replay-12345678").mkdir()
    (root / "replay-12345678" / "driving.mp4").write_bytes(b"left by a killed replay")
    (root / "shards/meshwarp/train-000099.tar").write_bytes(b"left by a killed pack")
    forget(root, HIS)
    return root


def test_nothing_of_him_is_left(forgotten: Path, needles: set[str]) -> None:
    assert traces(forgotten, needles) == set()
    assert not (forgotten / "report").exists() and not (forgotten / "cache").exists() and not list(forgotten.glob("replay-*"))
    assert verify(forgotten) == []


def test_what_artifacts_are_there_is_what_records_name(forgotten: Path) -> None:
    there = {str(p.relative_to(forgotten)) for p in (forgotten / "artifacts").rglob("*") if p.is_file()}
    assert there == reachable(forgotten) and there


def test_samples_of_others_are_the_same_bytes(forgotten: Path, finished: Finished) -> None:
    before, after = members(finished.shards), members(forgotten / "shards/meshwarp")
    index = {r["sample"]: r for r in read_index(finished.shards).to_pylist()}
    theirs = {k for k, r in index.items() if HIS not in (r["performer"], r["appearance"])}
    assert theirs and after.keys() == theirs < before.keys()
    assert all(after[k] == before[k] for k in theirs)


def test_only_touched_tars_are_replaced_by_new_numbers(forgotten: Path, finished: Finished) -> None:
    rows = read_index(finished.shards).to_pylist()
    touched = {r["tar"] for r in rows if HIS in (r["performer"], r["appearance"])}
    there = {p.name for p in (forgotten / "shards/meshwarp").glob("*.tar")}
    others = {r["tar"] for r in rows} - touched
    assert others <= there and not touched & there
    assert all(file_digest(forgotten / "shards/meshwarp" / t) == file_digest(finished.shards / t) for t in others)
    assert min(there - others, default="z") > max(r["tar"] for r in rows)


# --- readers


def test_a_reader_that_held_the_old_index_says_what_happened_and_gives_no_wrong_sample(copied: Path, needles: set[str]) -> None:
    shards = copied / "shards/meshwarp"
    held = ShardStream(shards, StreamConfig(frames=6, history=2))
    rows = {r["sample"]: r for r in read_index(shards).to_pylist()}
    touched = {r["tar"] for r in rows.values() if HIS in (r["performer"], r["appearance"])}
    before = [held.read(p) for p in range(len(held))]
    forget(copied, HIS)
    refused = 0
    for position, window in enumerate(before):
        if rows[window.key]["tar"] in touched:
            refused += 1
            with pytest.raises(ValueError, match=r"\.tar: sample .*withdrawn.*read index.parquet again"):
                held.read(position)
        else:
            assert np.array_equal(held.read(position).target, window.target)
    assert refused
    anew = ShardStream(shards, StreamConfig(frames=6, history=2))
    assert anew.keys and not set(anew.keys) & needles and [anew.read(p).key for p in range(len(anew))]
    next(iter(shards.glob("*.tar"))).unlink()  # lost, not withdrawn: the index names it
    with pytest.raises(ValueError, match="`crosspair verify` says what is damaged"):
        [anew.read(p) for p in range(len(anew))]


# --- killed


class Killed(BaseException):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int, work: Callable[[], object]) -> int:
    """Does `work` up to its `step`-th change of the disk; how many changes it did."""
    done = 0

    def count() -> None:
        nonlocal done
        if done == step:
            raise Killed
        done += 1

    write, writing, delete, delete_folder = DiskStore.write, DiskStore.writing, DiskStore.delete, DiskStore.delete_folder

    def deleting(self: DiskStore, names: list[str]) -> None:
        for name in names:
            count()
            delete(self, [name])

    def deleting_folder(self: DiskStore, folder: str) -> None:
        deleting(self, self.names(f"{folder}/"))
        delete_folder(self, folder)

    with monkeypatch.context() as m:
        m.setattr(DiskStore, "write", lambda self, name, data: (count(), write(self, name, data)))
        m.setattr(DiskStore, "writing", lambda self, name: (count(), writing(self, name))[1])
        m.setattr(DiskStore, "delete", deleting)
        m.setattr(DiskStore, "delete_folder", deleting_folder)
        try:
            work()
        except Killed:
            pass
    return done


def twin(root: Path, copy: Path) -> Path:
    """A copy of a run in which files are links: nothing is written into a file that is there."""
    shutil.copytree(root, copy, copy_function=lambda a, b: Path(b).hardlink_to(a))
    (copy / ".lock").unlink(missing_ok=True)
    return copy


def test_killed_anywhere_it_goes_on(finished: Finished, forgotten: Path, needles: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = twin(finished.root, tmp_path / "whole")
    steps = killed_at(monkeypatch, 10**6, lambda: forget(whole, HIS))
    assert steps > 40
    left = []
    for step in sorted({0, 1, 2, *range(3, steps, max(1, steps // 12)), steps - 1}):
        root = twin(finished.root, tmp_path / str(step))
        assert killed_at(monkeypatch, step, lambda root=root: forget(root, HIS)) == step  # type: ignore[misc]
        left.append(any("forgotten" in p for p in verify(root)))
        if step == 0 or step % 2:
            forget(root, HIS)
        else:  # as a run begins
            with exclusive(root):
                enforce(DiskStore(root))
        assert traces(root, needles) == set() and verify(root) == []
        assert members(root / "shards/meshwarp") == members(forgotten / "shards/meshwarp")
    assert sum(left) > 8


def test_it_is_done_once(forgotten: Path, tmp_path: Path) -> None:
    root = twin(forgotten, tmp_path / "run")
    before = files(root)
    removal = forget(root, HIS)
    assert (removal.records, removal.rows, removal.files, removal.samples) == (0, 0, 0, {})
    enforce(DiskStore(root))
    assert {k: v for k, v in files(root).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


# --- what a later run does


def test_a_run_does_not_take_him_in_again(
    finished: Finished, world: World, needles: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when only the tombstone stood; then a run, whose config lists his files still, and a copy under another name."""
    root = tmp_path / "run"
    shutil.copytree(finished.root, root)
    killed_at(monkeypatch, 1, lambda: forget(root, HIS))
    assert (root / NAME).is_file() and traces(root, needles)
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(world.base / "clips/a_astronaut.mp4", more / "renamed.mp4")
    watcher = Silent()
    clips = [*world.config.clips, str(more), str(world.base / "clips/a_astronaut.mp4")]
    summary = world.run(str(root), watcher, clips=clips)
    assert traces(root, needles | {"renamed"}) == set() and verify(root) == []
    assert [s for s in watcher.said if s.startswith("2 of the files that are listed")]
    assert [(stage, outcome, reason) for stage, outcome, reason in watcher.units if stage in ("ingest", "faces", "portraits")] == [
        ("ingest", "rejected", "forgotten")
    ]
    before, after = members(finished.shards), members(root / "shards/meshwarp")
    assert summary.samples == len(after) and all(after[k] == before[k] for k in before.keys() & after.keys())
    assert {k for k, r in members_index(finished).items() if HIS not in (r["performer"], r["appearance"])} <= after.keys()
    again = Silent()
    world.run(str(root), again, clips=clips)
    assert again.units == [] and [s for s in again.said if s.startswith("3 of the files that are listed")]


def members_index(finished: Finished) -> dict[str, dict]:
    return {r["sample"]: r for r in read_index(finished.shards).to_pylist()}


# --- names, and asking


def test_who_is_unknown_is_said_with_names_that_are_near(copied: Path) -> None:
    before = files(copied)
    with pytest.raises(ValueError, match="nobody is called 'colins'; near: .*collins"):
        forget(copied, "colins")
    assert {k: v for k, v in files(copied).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


def test_the_command_lists_first_and_asks(copied: Path) -> None:
    def command(*more: str, **given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([CROSSPAIR, "forget", copied, *more], capture_output=True, text=True, **given)  # type: ignore[call-overload,no-any-return]

    before = {k: v for k, v in files(copied).items() if k != ".lock"}
    said = command(HIS, "--dry-run")
    assert said.returncode == 0 and "2 source files" in said.stdout and "samples of set meshwarp" in said.stdout and " MB" in said.stdout
    assert command(HIS, input="n\n").returncode == 1
    assert {k: v for k, v in files(copied).items() if k != ".lock"} == before
    done = command(HIS, input="y\n")
    assert done.returncode == 0 and "forgotten: 2 source files" in done.stdout, done.stderr
    assert command("nobody at all").returncode == 2


def test_a_list_of_single_files_in_run_yaml_does_not_name_his(copied: Path) -> None:
    text = (copied / "run.yaml").read_text()
    (copied / "run.yaml").write_text(text.replace("- clips.csv", "- clips.csv\n  - clips/a_astronaut.mp4"))
    forget(copied, HIS)
    assert "a_astronaut" not in (copied / "run.yaml").read_text() and "- forgotten\n" in (copied / "run.yaml").read_text()


def test_what_is_kept_beside_a_tar_goes_too(copied: Path, needles: set[str]) -> None:
    rows = members_index(Finished(copied, Summary(), Silent()))
    for key in rows:
        (copied / "shards/meshwarp/latents").mkdir(exist_ok=True)
        (copied / f"shards/meshwarp/latents/{key}.latents.safetensors").touch()
    forget(copied, HIS)
    left = {p.name.split(".")[0] for p in (copied / "shards/meshwarp/latents").iterdir()}
    assert left == set(read_index(copied / "shards/meshwarp")["sample"].to_pylist()) and not left & needles


def test_in_an_object_store(finished: Finished, s3: S3Server, needles: set[str]) -> None:
    s3.make_bucket("forgetting")
    bucket = ObjectStore("s3://forgetting/run")
    for name in DiskStore(finished.root).names(""):
        bucket.write(name, (finished.root / name).read_bytes())
    assert foresee_forget(bucket, HIS) == forget(bucket, HIS)
    assert traces(bucket, needles) == set() and verify(bucket) == []


# --- a damaged neighbour, damaged tombstones


def test_a_damaged_neighbour_does_not_hold_it_up(copied: Path) -> None:
    shards = copied / "shards/meshwarp"
    rows = read_index(shards).to_pylist()
    tar = max({r["tar"] for r in rows}, key=lambda t: sum(r["tar"] == t for r in rows))
    first, damaged, *rest = [r["sample"] for r in rows if r["tar"] == tar]
    data = bytearray((shards / tar).read_bytes())
    data[next(r for r in rows if r["sample"] == damaged)["members"][2]["offset"] + 100] ^= 1
    (shards / tar).write_bytes(data)
    said: list[str] = []
    take_out(shards, {first}, max_mb=1, seed=0, progress=said.append)
    assert any("left out" in s and damaged in s for s in said)
    assert members(shards).keys() == {r["sample"] for r in rows} - {first, damaged} and not (shards / tar).exists()


def test_tombstones_say_nothing_and_know_all(tmp_path: Path) -> None:
    root = DiskStore(tmp_path)
    assert not read_tombstones(root) and "ann" not in read_tombstones(root)
    write_tombstones(root, Tombstones().with_more({"ann", "/a/ann.mp4"}, {"/a/both.mp4"}))
    kept = read_tombstones(root)
    assert "ann" not in (tmp_path / NAME).read_text() and Tombstones().with_more({"ann"}).graves != kept.graves
    about = {"licence": "", "consent": ""}
    sources = [
        SourceFile(id=str(k), uri=uri, identity=who, **about)
        for k, (uri, who) in enumerate([("/a/ann.mp4", "bob"), ("/a/new.mp4", "ann"), ("/a/both.mp4", "ann"), ("/a/bob.mp4", "bob")])
    ]
    assert [(s.uri, s.identity.split("-")[0]) for s in kept.let_in(sources)] == [("/a/both.mp4", "both"), ("/a/bob.mp4", "bob")]
    assert kept.with_more({"ann"}) is kept
    data = (tmp_path / NAME).read_bytes()
    for at in (3, len(data) // 2, len(data) - 5):
        (tmp_path / NAME).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="would take in again who was forgotten"):
            read_tombstones(root)
