"""Forgetting a person: nothing that derives from him is left, nothing of others is lost, and he does not come back."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from faceclips import moving_face, tone, write_clip
from s3server import S3Server
from smallworld import Finished, Silent, World
from tinynet import tiny_network
from typer.testing import CliRunner, Result

from model.stream import ShardStream, StreamConfig
from pipeline import ledger, tables
from pipeline.books import Summary
from pipeline.cli import app
from pipeline.config import RunConfig
from pipeline.derived import Books, called, derived
from pipeline.forget import enforce, foresee_forget, forget, without
from pipeline.ledger import STAGES, Ledger
from pipeline.pack import take_out
from pipeline.report import write_report
from pipeline.run import add_portraits, run
from pipeline.sources import file_identity
from pipeline.storage import exclusive
from pipeline.tombstones import NAME, Tombstones, read_tombstones, write_tombstones
from pipeline.verify import verify
from schemas.config import parse_config
from schemas.ids import file_digest
from schemas.sample import MEMBERS, read_index, read_members
from schemas.store import DiskStore, ObjectStore, Store, open_store
from schemas.units import SourceFile

HIS = "collins"  # of smallworld: a clip, and a copy of it of which no manifest says anything


def said_by(root: Store) -> Iterator[tuple[str, bytes]]:
    """All that the files of a run say: their names, their bytes (a tar's members are in it as they are), and tables unpacked."""
    for name in root.names(""):
        data = root.read(name)
        yield name, name.encode()
        yield name, data
        if name.endswith(".parquet"):
            yield name, json.dumps(pq.read_table(io.BytesIO(data)).to_pylist(), default=str).encode()


def traces(root: Path | Store, needles: set[str]) -> set[tuple[str, str]]:
    """Needles that are found anywhere in a run, and where."""
    encoded = {needle: needle.encode() for needle in needles}
    return {(name, needle) for name, data in said_by(open_store(root)) for needle in needles if encoded[needle] in data}


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
    with pytest.MonkeyPatch.context() as m:  # its ledger as that of a long run
        m.setattr(ledger, "_MAX_SEGMENTS", 1)
        Ledger(root).compact()
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
        with suppress(Killed):
            work()
    return done


def twin(root: Path, copy: Path) -> Path:
    """A copy of a run in which files are links: nothing is written into a file that is there."""
    shutil.copytree(root, copy, copy_function=lambda a, b: Path(b).hardlink_to(a))
    (copy / ".lock").unlink(missing_ok=True)
    return copy


def test_killed_anywhere_it_goes_on(
    finished: Finished, forgotten: Path, needles: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = twin(finished.root, tmp_path / "whole")
    steps = killed_at(monkeypatch, 10**6, lambda: forget(whole, HIS))
    assert steps > 40
    left = []
    for step in sorted({0, 1, 2, *range(3, steps, max(1, steps // 7)), steps - 1}):
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
    assert sum(left) > 4


def test_it_is_done_once(forgotten: Path, tmp_path: Path) -> None:
    root = twin(forgotten, tmp_path / "run")
    before = files(root)
    removal = forget(root, HIS)
    assert (removal.records, removal.rows, removal.files, removal.samples) == (0, 0, 0, {})
    enforce(DiskStore(root))
    assert {k: v for k, v in files(root).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


# --- what a later run does


@pytest.mark.slow
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


def test_who_was_forgotten_cannot_be_added(copied: Path, world: World) -> None:
    image = world.base / "images/hopper.png"
    gone = {r["portrait"] for r in tables.load(copied, "portraits") if r["uri"] == str(image)} | {str(image)}
    forget(copied, file_identity(str(image)))
    before, watcher = members(copied / "shards/meshwarp"), Silent()
    add_portraits(copied, [str(image)], base=world.base, watcher=watcher)
    assert watcher.units == [] and any(s.startswith("1 of the files are the run's own, or show somebody") for s in watcher.said)
    assert traces(copied, gone) == set() and verify(copied) == [] and members(copied / "shards/meshwarp").keys() == before.keys()


def members_index(finished: Finished) -> dict[str, dict]:
    return {r["sample"]: r for r in read_index(finished.shards).to_pylist()}


# --- names, and asking


def test_who_is_unknown_is_said_with_names_that_are_near(copied: Path) -> None:
    before = files(copied)
    with pytest.raises(ValueError, match=r"nobody is called 'colins'; near: .*collins"):
        forget(copied, "colins")
    assert {k: v for k, v in files(copied).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


def test_the_command_lists_first_and_asks(copied: Path) -> None:
    def command(*more: str, **given: str) -> Result:
        return CliRunner().invoke(app, ["forget", str(copied), *more], **given)

    before = {k: v for k, v in files(copied).items() if k != ".lock"}
    said = command(HIS, "--dry-run")
    assert said.exit_code == 0 and "2 source files" in said.stdout and "samples of set meshwarp" in said.stdout and " MB" in said.stdout
    assert "known as collins" in said.stdout and "--until plan" not in said.stdout
    assert command(HIS, input="n\n").exit_code == 1
    assert {k: v for k, v in files(copied).items() if k != ".lock"} == before
    done = command(HIS, input="y\n")
    assert done.exit_code == 0 and "forgotten: 2 source files" in done.stdout
    assert isinstance(command("nobody at all").exception, ValueError)


def test_it_says_that_tables_are_behind(copied: Path) -> None:
    """A run that was killed before it knew whom its newest clips show."""
    rows = tables.load(copied, "clips")
    tables.save(copied, "clips", [r for r in rows if r["identity"] == HIS])
    assert foresee_forget(copied, HIS).newer == len(rows) - 1
    assert "--until plan" in CliRunner().invoke(app, ["forget", str(copied), HIS, "--dry-run"]).stdout


def test_a_list_of_single_files_in_run_yaml_does_not_name_his(copied: Path) -> None:
    text = (copied / "run.yaml").read_text()
    (copied / "run.yaml").write_text(text.replace("- clips.csv", "- clips.csv\n  - clips/a_astronaut.mp4"))
    forget(copied, HIS)
    assert "a_astronaut" not in (copied / "run.yaml").read_text() and "- forgotten\n" in (copied / "run.yaml").read_text()


def test_every_pair_set_is_rid_of_him(copied: Path, needles: set[str]) -> None:
    shutil.copytree(copied / "shards/meshwarp", copied / "shards/other")
    rows = tables.load(copied, "samples")
    tables.save(copied, "samples", [*rows, *({**r, "set": "other"} for r in rows)])
    removal = forget(copied, HIS)
    assert removal.samples["meshwarp"] == removal.samples["other"] > 0
    assert traces(copied, needles) == set() and verify(copied) == []
    assert members(copied / "shards/meshwarp") == members(copied / "shards/other")


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
    first, damaged, *_ = [r["sample"] for r in rows if r["tar"] == tar]
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


# --- a file that shows others too


@pytest.fixture(scope="module")
def duo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of two people at once, and one of hopper alone, in a run with a network, up to its plan."""
    base = tmp_path_factory.mktemp("duo")
    both = zip(moving_face("astronaut", 30), moving_face("hopper", 30), strict=True)
    write_clip(base / "clips/duo.mp4", (np.concatenate(pictures, 1) for pictures in both), sound=tone(1.2))
    write_clip(base / "clips/hopper.mp4", moving_face("hopper", 44, wh=(400, 360), face_px=150.0), 30)
    tiny_network(base / "net.onnx")
    run(duo_config("run"), base=base, watcher=Silent(), until="plan")
    return base


def duo_config(name: str, **faces: object) -> RunConfig:
    return parse_config(
        RunConfig,
        {
            "run": name,
            "clips": ["clips"],
            "video": {"size_px": 128},
            "ray": {"mode": "local"},
            "faces": {"everyone": True, **faces},
            "identity": {"model": "net.onnx", "min_similarity": 0.8, "min_similarity_in_file": 0.5},
        },
    )


@pytest.mark.slow
def test_of_a_film_of_two_the_other_stays_and_he_does_not_come_back_with_other_settings(duo: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(duo / "run", root)
    clips = {r["clip"]: r for r in tables.load(root, "clips")}
    people = {r["identity"]: r for r in tables.load(root, "identities")}
    his = next(i for i in people if any(Path(clips[m]["uri"]).name == "hopper.mp4" for m in people[i]["members"]))
    (hers,) = people.keys() - {his}
    assert len(people[his]["members"]) == 2 and len(people[hers]["members"]) == 1
    (her_clip,) = people[hers]["members"]
    looks = {r.unit: r.data for r in Ledger(root).history("identity")}
    alone = next(s for s in tables.load(root, "sources") if s["uri"].endswith("/hopper.mp4"))
    gone = {*people[his]["members"], his, alone["source"], alone["content"], alone["uri"]}
    gone |= {looks[m][k] for m in people[his]["members"] for k in ("embedding", "hashes")}
    gone |= {p["portrait"] for p in tables.load(root, "portraits") if p["clip"] in people[his]["members"]}
    assert {needle for _, needle in traces(root, gone)} == gone
    removal = forget(root, his)
    assert removal.partly == 1 and removal.units["clips"] == 2 and removal.units["source files"] == 1
    assert traces(root, gone) == set() and verify(root) == []
    left = {p.name for p in (root / "artifacts").rglob("*") if p.is_file()}
    assert f"{her_clip}.target.mp4" in left and not left & {"tracks.npz", "sound.s16"}
    assert all(name.startswith(her_clip) or name == "timing.npz" for name in left)
    watcher = Silent()
    run(duo_config(str(root)), base=duo, watcher=watcher, until="plan")
    assert watcher.units == [] and [r["clip"] for r in tables.load(root, "clips")] == [her_clip]
    # cut anew: what is not plainly hers goes
    watcher = Silent()
    run(duo_config(str(root), crop_scale=2.1), base=duo, watcher=watcher, until="plan")
    (again,) = tables.load(root, "clips")
    assert (again["outcome"], again["identity"]) == ("done", hers) and again["crop"] != clips[her_clip]["crop"]
    assert any(s.startswith("forgotten before and taken out now: 1 clips") for s in watcher.said)
    assert traces(root, gone) == set() and verify(root) == []
    assert {p.name.split(".")[0] for p in (root / "artifacts/faces").rglob("*") if p.is_file()} == {her_clip, again["clip"]}
    run(duo_config(str(root), crop_scale=2.1), base=duo, watcher=(quiet := Silent()), until="plan")
    assert quiet.units == [] and not any("forgotten" in s for s in quiet.said)


# --- what derives from a person


def books_of(who: dict[str, str], source_of: dict[str, str], **more: object) -> Books:
    """Clips (`who`: -> identity, "" for none) of sources, one content each, and a still of each clip."""
    books = Books(
        identities=[
            {"identity": i, "name": "", "same_as": "", "seen": 0, "members": [u for u, w in who.items() if w == i]}
            for i in sorted({*who.values()} - {""})
        ]
    )
    for unit, source in source_of.items():
        books.units[source].add(unit)
        books.uri[source].add(f"/{source}.mp4")
        books.contents[source].add(f"content of {source}")
        books.clips[unit].append({"content": source, "first_frame": 0, "last_frame": 9, "crop": [100 * len(books.clips), 0, 90]})
        books.stills[unit].add(f"still of {unit}")
    for name, value in more.items():
        getattr(books, name).update(value)
    return books


def test_pairs_go_in_which_he_performs_or_appears() -> None:
    pairs = {"p1": {"a1", "still of b1"}, "p2": {"b1", "still of a1"}, "p3": {"b1", "still of c1"}}
    books = books_of({"a1": "ann", "b1": "bob", "c1": "cat"}, {"a1": "f", "b1": "g", "c1": "h"}, pairs=pairs)
    found = derived(books, names={"ann"})
    assert found.pairs == {"p1", "p2"} and found.clips == {"a1"} and found.portraits == {"still of a1"} and found.sources == {"f"}


def test_of_a_file_of_several_only_what_is_surely_anothers_stays() -> None:
    who = {"a1": "ann", "b1": "bob", "nobody": "", "old cut of b1": ""}
    books = books_of(who, dict.fromkeys(who, "f"))
    books.clips["old cut of b1"] = [{**books.clips["b1"][0], "first_frame": 4, "last_frame": 13}]
    found = derived(books, names={"ann"})
    assert found.clips == {"a1", "nobody"} and not found.sources and found.partly == {"/f.mp4", "content of f"}
    books.clips["old cut of b1"][0] |= {"first_frame": 7, "last_frame": 16}
    assert derived(books, names={"ann"}).clips == {"a1", "nobody", "old cut of b1"}
    assert derived(books, names={"ann", "bob"}).sources == {"f"}


def test_copies_are_his_whatever_they_are_called() -> None:
    who = {"a1": "ann", "b1": "bob", "like a1": "", "like that": ""}
    books = books_of(who, {"a1": "f", "b1": "g", "like a1": "g", "like that": "h"}, near={"like a1": "a1", "like that": "like a1"})
    books.contents["twin"].add("content of h")
    books.uri["twin"].add("/twin.mp4")
    found = derived(books, names={"ann"})
    assert found.clips == {"a1", "like a1", "like that"} and found.sources == {"f", "h", "twin"} and "/g.mp4" in found.partly


def test_what_a_file_is_called_is_who_it_shows() -> None:
    books = books_of({"a1": "ann", "b1": "bob", "c1": "bob"}, {"a1": "f", "b1": "g", "c1": "g"})
    books.named.update({s: file_identity(f"/{s}.mp4") for s in "fg"})
    assert called(books, books.named["f"]) == {"ann"} == called(books, "ann") and called(books, books.named["g"]) == {"bob"}
    assert called(books, "nobody") == set()
    books.units["g"].add("a1")
    with pytest.raises(ValueError, match="shows several people; name one of them: ann, bob"):
        called(books, books.named["g"])


def test_records_of_a_file_that_shows_others_too() -> None:
    tombstones = Tombstones().with_more({"a1", "ann"}, {"/f.mp4"})
    source = {"id": "f", "uri": "/f.mp4", "identity": "ann"}
    about = {"unit": "u", "parent": "", "source_uri": "/f.mp4", "outcome": "done", "reason": "", "message": "", "folder": "x", "data": {}}
    cut = [{"id": u, "source": source, "content": "c", "digests": {f"{u}.target.mp4": "1"}} for u in ("a1", "b1")]
    faces = {**about, "stage": "faces", "children": cut, "digests": {"a1.target.mp4": "1", "b1.target.mp4": "1", "tracks.npz": "2"}}
    left = without(faces, tombstones)
    assert left is not None and [c["id"] for c in left["children"]] == ["b1"] and left["digests"] == {"b1.target.mp4": "1"}
    assert left["children"][0]["source"]["identity"] == file_identity("/f.mp4") and without(left, tombstones) == left
    alone = without({**faces, "children": cut[:1]}, tombstones)
    assert alone is not None and (alone["outcome"], alone["reason"], alone["digests"], alone["folder"]) == ("rejected", "forgotten", {}, "")
    shot = {"id": "s", "source": source, "content": "c", "has_sound": True}
    ingest = {**about, "stage": "ingest", "children": [shot], "digests": {"sound.s16": "1", "timing.npz": "2"}}
    left = without(ingest, tombstones)
    assert left is not None and left["digests"] == {"timing.npz": "2"} and not left["children"][0]["has_sound"]
    driving = {
        "id": "p",
        "pair": {"id": "p", "clip": {"id": "b1", "source": source}, "portrait": {"id": "q", "clip": "a1", "source": source}},
    }
    assert without({**about, "stage": "reenact", "children": [driving], "digests": {}}, tombstones) is None
    assert without({**faces, "unit": "a1"}, tombstones) is None
    other = {**faces, "source_uri": "/g.mp4", "children": [{**cut[1], "source": {**source, "uri": "/g.mp4", "identity": "bob"}}]}
    assert without(other, tombstones) == other


def test_names_that_became_one_are_one(copied: Path) -> None:
    rows = tables.load(copied, "identities")
    known = {r["identity"]: r for r in rows}
    older = {**known[HIS], "identity": "older", "name": "", "members": ["a clip of before"], "same_as": HIS}
    tables.save(copied, "identities", [*rows, older, {**older, "identity": "oldest", "members": [], "same_as": "older"}])
    other = next(i for i in known if i != HIS)
    known[other]["doubts"] = f"{HIS} (0.61), {other}, the second (0.52)"
    tables.save(copied, "identities", [*known.values(), older, {**older, "identity": "oldest", "members": [], "same_as": "older"}])
    assert foresee_forget(copied, "oldest").names == ["collins", "older", "oldest"]
    forget(copied, "oldest")
    rows = tables.load(copied, "identities")
    assert {r["identity"] for r in rows} == known.keys() - {HIS}
    assert [r["doubts"] for r in rows if r["identity"] == other] == [f"{other}, the second (0.52)"]
    assert not any(u.startswith("a clip of before") for r in rows for u in r["members"]) and verify(copied) == []
