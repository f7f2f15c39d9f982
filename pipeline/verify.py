"""Verify and diff: do ledger, tables, index and tars of a run agree, and do two runs hold the same samples?"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.forget import unfinished
from pipeline.ledger import STAGES, Ledger, damaged_units
from pipeline.storage import read_run_file
from schemas.files import StorageError
from schemas.ids import checksum, content_digest
from schemas.latents import FOLDER as LATENTS
from schemas.latents import layout, read_latents_index, tar_problems
from schemas.outcomes import REASONS, Outcome
from schemas.sample import (
    INDEX_NAME,
    INFO,
    MEMBERS,
    OPTIONAL_MEMBERS,
    SampleInfo,
    parquet_bytes,
    read_index,
    read_members,
    sample_digest,
    tar_frame,
)
from schemas.store import Place, Store, open_store
from stages import lineage


def verify(place: Place) -> list[str]:
    """Everything that is wrong with a run, a sentence each; empty when all agrees and every digest holds.

    Raises:
        ValueError: `place` is no run.
    """
    root = open_store(place)
    prints = read_run_file(root)["fingerprints"]
    folders = root.folders("shards", depth=1)
    files = [*(f"tables/{name}.parquet" for name in tables.SCHEMAS), *(f"{folder}/{INDEX_NAME}" for folder in folders)]
    checks = [_check_parquet(root, file) for file in files if root.size(file) >= 0]
    checks += [
        _check_forgotten(root),
        _check_ledger(root, prints),
        _check_tables(root, prints),
        *(_check_set(root, folder) for folder in folders),
        *(_check_latents(root.sub(folder)) for folder in folders),
    ]
    problems = [problem for check in checks for problem in _until_damage(check)]
    return list(dict.fromkeys(problems))  # several checks end at one damaged file


def _until_damage(check: Iterator[str]) -> Iterator[str]:
    """A check's problems; a damaged file is the last of them, for of the rest nothing can be said."""
    try:
        yield from check
    except ValueError as e:
        yield str(e)
    except StorageError:
        raise
    except OSError as e:
        yield f"{e.filename or e}: cannot be read: {e.strerror}"


def _check_parquet(root: Store, file: str) -> Iterator[str]:
    """Every byte is as it was written: pages have checksums, and for what is around them the table is written once more."""
    folder, _, name = file.rpartition("/")
    table = read_index(root.sub(folder)) if name == INDEX_NAME else tables.read(root, name.removesuffix(".parquet"))
    if not _as_written(root.read(file), parquet_bytes(table)):
        yield f"{root.at(file)}: changed since it was written; `crosspair run` writes it anew"


def _as_written(data: bytes, anew: bytes) -> bool:
    """Whether a table's bytes are those that writing it gives; nobody can say so where another version of the library wrote it."""
    writer = pq.read_metadata(pa.BufferReader(data)).created_by or ""
    by_us = writer == f"parquet-cpp-arrow version {pa.__version__}"
    return bool(re.fullmatch(r"parquet-cpp-arrow version [0-9.]+", writer)) and (not by_us or anew == data)


def _check_forgotten(root: Store) -> Iterator[str]:
    """Nothing is there that was forgotten."""
    if unfinished(root):
        yield f"{root}: holds something that was forgotten; `crosspair forget` or `crosspair run` again takes it out"


def _check_ledger(root: Store, prints: dict[str, str]) -> Iterator[str]:
    """Every artifact that a record names is there and has its digest; every attempt is closed."""
    ledger = Ledger(root)
    for stage in STAGES:
        records = ledger.read(stage, prints.get(stage, ""))
        yield from (f"{problem}; `crosspair retry RUN --damaged` and a run mend that" for _, problem in damaged_units(root, stage, records))
        for unit, record in records.items():
            if record.outcome != Outcome.DONE and record.reason not in REASONS:
                yield f"ledger/{stage}: unit {unit} is {record.outcome} without a known reason ({record.reason!r})"
        for attempt in ledger.open_attempts(stage):
            yield f"{root.at(attempt)}: an attempt without an outcome; run `crosspair run` again"


def _check_tables(root: Store, prints: dict[str, str]) -> Iterator[str]:
    """Every unit listed or planned has an outcome, the one in the ledger; every set that the tables name is there."""
    packed = bool(root.folders("shards", depth=1))
    for name in ("sources", "clips", "portraits", "outcomes", *(("identities", "pairs", "samples") if packed else ())):
        if root.size(f"tables/{name}.parquet") < 0:
            yield f"{root.at(f'tables/{name}.parquet')}: missing"
    rows = tables.load(root, "outcomes")
    records = {stage: Ledger(root).read(stage, prints.get(stage, "")) for stage in STAGES}
    for r in rows:
        if r["stage"] in records and r["reason"] not in lineage.REASONS:  # what may not be used need not have been looked at
            record = records[r["stage"]].get(r["unit"])
            if record is None:
                yield f"ledger/{r['stage']}: no record of {r['unit']}, which the tables call {r['outcome']}"
            elif record.outcome != r["outcome"] and r["reason"] != "duplicate":
                yield f"tables: {r['stage']} of {r['unit']} is {r['outcome']}, in the ledger {record.outcome}"
    have = {(r["stage"], r["unit"]) for r in rows}
    for source in tables.load(root, "sources"):
        stage = "ingest" if source["kind"] == "clip" else "portraits"
        if (stage, source["source"]) not in have:
            yield f"tables: source {source['uri']} has no outcome"
        if not source["outcome"]:
            yield f"tables: source {source['uri']} is unfinished"
    clips = {c["clip"]: c["outcome"] for c in tables.load(root, "clips")}
    judged = {r["unit"] for r in rows if r["stage"] == "gates"}
    yield from (f"tables: clip {c} has no verdict" for c in clips if c not in judged)
    samples = tables.load(root, "samples")
    if unplanned := {s["pair"] for s in samples} - {p["pair"] for p in tables.load(root, "pairs")}:
        yield f"tables: {len(unplanned)} samples are of no planned pair"
    for name in sorted({s["set"] for s in samples if s["tar"]}):
        if root.size(f"shards/{name}/{INDEX_NAME}") < 0:
            yield f"{root.at(f'shards/{name}')}: no index, though the tables name the set"
    for sample in samples:
        if (sample["outcome"] == Outcome.DONE) != bool(sample["tar"]):
            yield f"tables: pair {sample['pair']} is {sample['outcome'] or 'out'}, but its tar is {sample['tar'] or 'none'}"


def _check_set(root: Store, name: str) -> Iterator[str]:
    """Index and tars agree both ways; every member has its digest and its place; index and samples table agree."""
    folder = root.sub(name)
    rows = read_index(folder).to_pylist()
    by_tar: dict[str, list[dict]] = {}
    for r in rows:
        by_tar.setdefault(r["tar"], []).append(r)
    yield from (f"{folder.at(tar)}: not in the index" for tar in folder.names("", ".tar") if "/" not in tar and tar not in by_tar)
    for tar, members in sorted(by_tar.items()):
        yield from _check_tar(folder, tar, members)
    if len({r["sample"] for r in rows}) < len(rows):
        yield f"{folder}: a sample stands twice in the index"
    accepted = {s["pair"]: s["tar"] for s in tables.load(root, "samples") if f"shards/{s['set']}" == name and s["tar"]}
    indexed = {r["sample"]: r["tar"] for r in rows}
    for key in sorted(accepted.keys() | indexed.keys()):
        if key not in accepted or key not in indexed:
            yield f"{folder}: sample {key} is in {'the tables' if key in accepted else 'the index'} only"
        elif accepted[key] != indexed[key]:
            yield f"{folder}: sample {key} is in {indexed[key]}, by the tables in {accepted[key]}"


def _check_tar(folder: Store, name: str, rows: list[dict]) -> Iterator[str]:
    path = folder.at(name)
    try:
        data = folder.read(name)
    except FileNotFoundError:
        yield f"{path}: missing, though the index names it"
        return
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if not member.isreg():
                    yield f"{path}: {member.name} is no plain file"
                    continue
                found[member.name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as e:
        yield f"{path}: not a whole tar: {e}"
    for row in rows:
        names = {m["name"] for m in row["members"]}
        if missing := set(MEMBERS) - OPTIONAL_MEMBERS - names:
            yield f"{path}: sample {row['sample']} lacks {sorted(missing)}"
        if sample_digest({m["name"]: m["digest"] for m in row["members"]}) != row["digest"]:
            yield f"{path}: the index contradicts itself on sample {row['sample']}"
        for m in row["members"]:
            key = f"{row['sample']}.{m['name']}"
            offset, size = found.pop(key, (-1, 0))
            content = data[offset : offset + size] if offset >= 0 else b""
            if offset == -1:
                yield f"{path}: {key} is missing"
            elif offset != m["offset"] or size != m["size"]:
                yield f"{path}: {key} is not where the index says"
            elif content_digest(content) != m["digest"]:
                yield f"{path}: {key} does not have its digest"
            elif m.get("checksum") not in (None, checksum(content)):
                yield f"{path}: {key} has its digest, but not the checksum that the index gives it: take the tar away, then `crosspair run`"
            elif m["name"] == INFO:
                yield from (
                    f"{path}: {key} and the index differ in `{field}`" for field in _contradictions(SampleInfo.decode(content), row)
                )
    yield from (f"{path}: {name} is not in the index" for name in sorted(found))
    yield from _check_frame(path, data, rows)


def _check_frame(path: str, data: bytes, rows: list[dict]) -> Iterator[str]:
    """The first place where headers, padding and end are not what they are for these members; checksums know nothing of most of it."""
    members = sorted((m["offset"], f"{r['sample']}.{m['name']}", m["size"]) for r in rows for m in r["members"])
    end = 0
    for what, offset, expected in tar_frame([(name, size) for _, name, size in members]):
        end = offset + len(expected)
        if data[offset:end] != expected:
            yield f"{path}: {what} is not as it was written"
            return
    if len(data) > end:
        yield f"{path}: goes on behind its end"


def _check_latents(pair_set: Store) -> Iterator[str]:
    """What was encoded is of samples of the set, as they are; index and tars agree both ways, byte for byte."""
    folder = pair_set.sub(LATENTS)
    index = read_latents_index(folder)
    rows = index.rows if index else ()
    by_tar: dict[str, list[dict]] = {}
    for r in rows:
        by_tar.setdefault(r["tar"], []).append(r)
    named = {INDEX_NAME, *by_tar} if index else set()
    yield from (
        f"{folder.at(n)}: not in the index of latents; `crosspair latents` takes it away" for n in folder.names("") if n not in named
    )
    if index is None:
        return
    if not _as_written(folder.read(INDEX_NAME), index.encode()):
        yield f"{folder.at(INDEX_NAME)}: changed since it was written; take this folder away, then `crosspair latents` makes it anew"
    digests = {r["sample"]: r["digest"] for r in read_index(pair_set).select(["sample", "digest"]).to_pylist()}
    for r in rows:
        if digests.get(r["sample"]) != r["sample_digest"]:
            what = "other bytes of this sample" if r["sample"] in digests else "a sample that is not in the set"
            yield f"{folder}: latents of {r['sample']} are of {what}; `crosspair run` takes them away"
        if r["size"] != layout(index.codec, r["frames"]).size:
            yield f"{folder}: the index contradicts itself on the latents of {r['sample']}"
    if len({r["sample"] for r in rows}) < len(rows):
        yield f"{folder}: latents of a sample stand twice in the index"
    for tar, of_tar in sorted(by_tar.items()):
        yield from tar_problems(folder, tar, of_tar)


def _contradictions(info: SampleInfo, row: dict) -> list[str]:
    """Fields in which KEY.json and its row of the index differ."""
    shared = ("clip", "portrait", "performer", "appearance", "split", "frames", "fps", "size_px", "has_audio")
    return [f for f in shared if getattr(info, f) != row[f]] + (["key"] if info.key != row["sample"] else [])


def diff(a: Place, b: Place) -> list[str]:
    """How the samples of two runs differ, a sentence each; empty when they are the same, byte for byte.

    Bytes are read, not believed. In which tar a sample stands is no difference: a run that grew has other tars than one made at once.
    """
    runs = (open_store(a), open_store(b))
    sets = [set(run.folders("shards", depth=1)) for run in runs]
    for run, found in zip(runs, sets, strict=True):
        if not found:
            raise ValueError(f"{run}: holds no shards")
    differences = [f"set {folder.removeprefix('shards/')} is in one run only" for folder in sorted(sets[0] ^ sets[1])]
    for folder in sorted(sets[0] & sets[1]):
        name = folder.removeprefix("shards/")
        left, right = ({r["sample"]: r for r in read_index(run.sub(folder)).to_pylist()} for run in runs)
        for key in sorted(set(left) | set(right)):
            if key not in left or key not in right:
                differences.append(f"{name}: sample {key} is in {a if key in left else b} only")
                continue
            try:
                members = [read_members(run.sub(folder), side[key], MEMBERS) for run, side in zip(runs, (left, right), strict=True)]
            except ValueError as e:
                differences.append(f"{name}: {e}")
                continue
            names = sorted(n for n in members[0].keys() | members[1].keys() if members[0].get(n) != members[1].get(n))
            differences += [f"{name}: {key}.{n} differs" for n in names]
    return differences
