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
