"""Clips and portraits in S3: the same verdicts and bytes as from a disk, whatever becomes of the objects meanwhile."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from faceclips import face_clip, moving_face, noise, photograph, write_clip
from listed import list_sources
from PIL import Image
from s3server import S3Server
from smallworld import CONFIG, EXPECTED, Finished, Silent, World
from typer.testing import CliRunner

import schemas.store
from pipeline import tables, worker
from pipeline.cli import app
from pipeline.config import RunConfig, fingerprints
from pipeline.ledger import Ledger, Record
from pipeline.replay import find
from pipeline.sources import CLIP_SUFFIXES
from pipeline.state import read_prepared
from pipeline.verify import diff, verify
from pipeline.worker import ROW, StageWorker, row
from schemas.config import parse_config
from schemas.files import StorageError
from schemas.ids import digest, file_digest, source_id
from schemas.outcomes import Outcome
from schemas.store import DiskStore, ObjectStore, scratch_folder
from schemas.units import Shot, SourceFile
from stages.fetched import let_go, local_copy

CROSSPAIR = Path(sys.executable).with_name("crosspair")
REPO = Path(__file__).parents[2]
WEATHER = {"internal_error": 0.02, "slow_down": 0.02, "truncate": 0.02, "lost_request": 0.01, "lost_answer": 0.02, "delay": 0.02}


@pytest.fixture
def raw(s3: S3Server, request: pytest.FixtureRequest) -> ObjectStore:
    """A bucket for what the user has."""
    return ObjectStore(f"s3://{s3.make_bucket(f'user-{digest(request.node.name)}')}")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which nobody else uses; copies are gone when the test is."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    let_go()
    assert list(folder.iterdir()) == []


@dataclass
class Worked:
    """A run on a disk that takes units one by one, in this process."""

    root: Path
    worker: StageWorker
    config: RunConfig

    def do(self, stage: str, *specs: SourceFile | Shot) -> list[Record]:
        self.worker(pa.Table.from_pylist([row(stage, s) for s in specs], schema=ROW))
        records = self.records(stage)
        return [records[s.id] for s in specs]

    def records(self, stage: str) -> dict[str, Record]:
        return Ledger(self.root).read(stage, fingerprints(self.config)[stage])

    def frozen(self) -> str:
        """Its place, with a run.yaml there."""
        content = {"config": {**CONFIG, "run": "run"}, "fingerprints": fingerprints(self.config)}
        (self.root / "run.yaml").write_text(yaml.safe_dump(content))
        return str(self.root)

    def changed(self, source: SourceFile) -> bool:
        return read_prepared(DiskStore(self.root), self.config, [source], []).changed()["ingest"] == {source.id}


@pytest.fixture
def worked(tmp_path: Path) -> Worked:
    config = parse_config(RunConfig, CONFIG)
    return Worked(tmp_path / "run", StageWorker(str(tmp_path / "run"), config, ("ingest", "faces", "portraits"), "s"), config)


def source(bucket: ObjectStore, key: str) -> SourceFile:
    return SourceFile(id=source_id(bucket.at(key)), uri=bucket.at(key), identity="somebody", licence="", consent="")


def shots(record: Record) -> list[Shot]:
    return [worker.read_spec(Shot, json.dumps(c)) for c in record.children]


# --- a whole run


@pytest.fixture
def uploaded(world: World, raw: ObjectStore, finished: Finished) -> ObjectStore:
    """The small world's clips and images, with manifests by which everybody is called what they are called on the disk."""
    for folder in ("clips", "images"):
        for path in (world.base / folder).iterdir():
            if not path.is_symlink():
                raw.put(path, f"in/{folder}/{path.name}")
    raw.put(world.base / "clips.csv", "in/clips.csv")
    told = io.StringIO()
    writer = csv.writer(told)
    writer.writerow(["uri", "identity"])
    writer.writerows(
        [f"images/{Path(r['uri']).name}", r["identity"]] for r in tables.load(finished.root, "sources") if r["kind"] == "portrait"
    )
    raw.write("in/images.csv", told.getvalue().encode())
    return raw


def test_clips_in_s3_end_as_those_on_a_disk_and_give_the_same_bytes(
    finished: Finished, uploaded: ObjectStore, s3: S3Server, tmp_path: Path
) -> None:
    """In bad weather, with the run itself in the bucket, below its clips, and with one worker a stage where the other run had two."""
    given = {name: uploaded.digest(name) for name in uploaded.names("")}
    place = uploaded.at("in/clips/run")
    clips = [uploaded.at("in/clips.csv"), uploaded.at("in/clips")]
    config = {**CONFIG, "run": place, "clips": clips, "portraits": [uploaded.at("in/images.csv"), uploaded.at("in/images/*")]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "t").mkdir()
    s3.faults(WEATHER, seed=6, delay_s=0.2)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "t"), "RAY_TMPDIR": "/tmp"}
    done = subprocess.run([CROSSPAIR, "run", str(tmp_path / "run.yaml")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(s3.counts().injected.values()) > 20
    s3.calm()
    ends = {Path(r["uri"]).name: (r["outcome"], r["reason"]) for r in tables.load(place, "sources")}
    assert ends == {name: end for name, end in EXPECTED.items() if name != "link.mp4"}
    assert diff(finished.root, place) == [] and verify(place) == []
    assert {name: uploaded.digest(name) for name in given} == given
    assert not [n for n in uploaded.names("") if n not in given and not n.startswith("in/clips/run/")]
    assert not [p for p in (tmp_path / "t").iterdir() if p.name.startswith("crosspair-")]
    watcher = Silent()
    world = World(tmp_path, parse_config(RunConfig, config))
    s3.faults({})
    world.run(place, watcher)
    assert [units for name, units in watcher.steps if name != "pack"] == [0] * (len(watcher.steps) - 1)


# --- what becomes of single objects


def test_names_of_all_kinds(raw: ObjectStore, worked: Worked, scratch: Path, tmp_path: Path) -> None:
    keys = (
        "sp ace.mp4",
        'it\'s "q".mp4',
        "ünïcode ☃.mp4",
        "[x]*.mp4",
        "a#b?c.mp4",
        "100%20.mp4",
        "-dash.mp4",
        "a//b.mp4",
        "n" * 300 + ".mp4",
        "no suffix",
    )
    clip = write_clip(tmp_path / "clip.mp4", noise(12))
    for key in keys:
        raw._fs.call_s3("put_object", Bucket=str(raw)[5:], Key=key, Body=clip.read_bytes())
    sources = [s for key in keys for s in list_sources(raw.at(key), CLIP_SUFFIXES, Path())]
    records = worked.do("ingest", *sources)
    assert [r.source_uri for r in records] == [raw.at(k) for k in keys]
    assert {(r.outcome, r.data["content"], len(r.children)) for r in records} == {(Outcome.DONE, file_digest(clip), 1)}


@pytest.fixture
def film(raw: ObjectStore, tmp_path: Path) -> SourceFile:
    """Three shots."""
    pictures = [*moving_face(frames=30), *noise(30), *moving_face("hopper", frames=30)]
    raw.put(write_clip(tmp_path / "film.mp4", pictures), "film.mp4")
    return source(raw, "film.mp4")


def test_a_film_is_fetched_once_and_never_touched(film: SourceFile, worked: Worked, scratch: Path, s3: S3Server) -> None:
    s3.faults({})
    (record,) = worked.do("ingest", film)
    assert len(record.children) == 3
    found = worked.do("faces", *shots(record))
    assert [(r.outcome, r.reason) for r in found] == [("done", ""), ("rejected", "no_face"), ("done", "")]
    assert film.uri in found[1].message and str(scratch) not in found[1].message
    counts = s3.counts().requests
    assert counts["GET"] == 1 and set(counts) == {"GET", "HEAD"}
    assert len([p for p in scratch.rglob("*") if p.is_file()]) == 1


def test_another_source_takes_the_place_of_the_copy(raw: ObjectStore, film: SourceFile, worked: Worked, scratch: Path) -> None:
    raw.write("empty.mp4", b"")
    (record,) = worked.do("ingest", film)
    copy = local_copy(film.uri)
    assert worked.do("ingest", source(raw, "empty.mp4"))[0].reason == "empty_file" and not copy.exists()
    assert worked.do("faces", shots(record)[0])[0].outcome == "done" and local_copy(film.uri) != copy


def test_an_object_that_is_overwritten_before_its_shots_are_cut_is_found(
    raw: ObjectStore, film: SourceFile, worked: Worked, scratch: Path, tmp_path: Path
) -> None:
    (record,) = worked.do("ingest", film)
    assert not worked.changed(film)
    raw.put(face_clip(tmp_path / "other.mp4"), "film.mp4")
    (cut,) = worked.do("faces", shots(record)[0])
    assert (cut.outcome, cut.reason) == ("failed", "error")
    assert cut.message.startswith(f"ValueError: {film.uri}: changed since it was looked through; run again (content.py:")
    assert worked.changed(film)
    with pytest.raises(ValueError, match="changed since") as e:
        find(worked.frozen(), shots(record)[0].id, "faces").run()
    assert e.value.__notes__ == [f"{film.uri}: changed since it was looked through; run again"]
    raw.delete(["film.mp4"])
    assert worked.do("faces", shots(record)[1])[0].reason == "missing" and not worked.changed(film)


def test_what_cannot_be_had_has_the_same_reasons_as_on_a_disk(raw: ObjectStore, worked: Worked, scratch: Path, s3: S3Server) -> None:
    for key, data in {"empty.mp4": b"", "text.mp4": b"This is a text.\n" * 20, "secret.mp4": b"x"}.items():
        raw.write(key, data)
    s3.faults({"forbidden": 1.0}, methods=("GET", "HEAD"), match="secret")
    sources = [source(raw, key) for key in ("empty.mp4", "text.mp4", "secret.mp4", "gone.mp4")]
    sources += [replace(sources[0], id=source_id(uri), uri=uri) for uri in ("s3://nobody-made-it/x.mp4", "s3:///x.mp4")]
    records = worked.do("ingest", *sources)
    assert [r.reason for r in records] == ["empty_file", "not_media", "unreadable", "missing", "missing", "missing"]
    assert all(r.outcome == "rejected" and r.message.startswith(f"{s.uri}: ") for r, s in zip(records, sources, strict=True))
    assert not any(map(worked.changed, sources))
    s3.calm()
    raw.write("gone.mp4", b"it is back")
    raw.write("text.mp4", b"Another text....\n" * 20)
    assert [worked.changed(s) for s in sources] == [False, True, False, True, False, False]
    done = CliRunner().invoke(app, ["replay", worked.frozen(), sources[1].id])
    assert done.exit_code == 1 and done.output.startswith(f"rejected: not_media: {sources[1].uri}: ")


def test_a_picture_is_cut_and_replayed(raw: ObjectStore, worked: Worked, scratch: Path, tmp_path: Path) -> None:
    Image.fromarray(photograph("hopper")).save(tmp_path / "h.png")
    raw.put(tmp_path / "h.png", "h.png")
    (record,) = worked.do("portraits", source(raw, "h.png"))
    assert record.outcome == "done" and record.data["size_bytes"] == (tmp_path / "h.png").stat().st_size
    assert find(worked.frozen(), record.unit, "portraits").run()["files"] == record.digests
    assert list(scratch.iterdir()) == []


def test_a_store_that_fails_is_the_units_misfortune_and_passes(
    film: SourceFile, worked: Worked, scratch: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))
    monkeypatch.setattr(worker, "_PAUSE_S", 0.0)
    for methods in (("GET",), ("HEAD",)):
        s3.faults({"internal_error": 1.0}, methods=methods, match="film")
        (record,) = worked.do("ingest", film)
        assert (record.outcome, record.reason, record.attempts) == ("failed", "transient", 5)
        assert "the object store fails: " in record.message and f": '{film.uri}' (" in record.message
        assert not [p for p in scratch.rglob("*") if p.is_file()]
        s3.calm()
    with pytest.raises(StorageError, match=f"^{film.uri.rpartition('/')[0]}"):  # before a run begins, it is told at once
        s3.faults({"internal_error": 1.0})
        worked.changed(film)
    s3.calm()
    assert worked.changed(film)  # nobody knew how it was
    assert worked.do("ingest", film)[0].outcome == "done" and not worked.changed(film)


@pytest.mark.parametrize("end", ["killed", "well"])
def test_a_copy_goes_with_its_process(raw: ObjectStore, scratch: Path, end: str) -> None:
    raw.write("a.mp4", b"data")
    code = "import os, sys; from stages.fetched import local_copy as f; print(f(sys.argv[1]), flush=True)"
    code += "; os.kill(os.getpid(), 9)" if end == "killed" else ""
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, "-c", code, raw.at("a.mp4")], env=environment, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0), done.stderr
    copy = Path(done.stdout.strip())
    assert copy.is_relative_to(scratch) and copy.exists() == (end == "killed")
    scratch_folder().rmdir()
    assert not copy.exists()
