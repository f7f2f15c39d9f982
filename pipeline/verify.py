"""Verify and diff: do ledger, tables, index and tars of a run agree, and do two runs hold the same samples?"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline import tables
from pipeline.ledger import STAGES, Ledger, damaged_units
from pipeline.storage import read_run_file
from schemas.ids import content_digest
from schemas.outcomes import REASONS, Outcome
from schemas.sample import INDEX_NAME, INFO, MEMBERS, OPTIONAL_MEMBERS, SampleInfo, read_index, read_members, sample_digest


def verify(root: Path) -> list[str]:
    """Everything that is wrong with a run, a sentence each; empty when all agrees and every digest holds.

    Raises:
        ValueError: `root` is no run.
    """
    prints = read_run_file(root)["fingerprints"]
    try:
        problems = [*_check_ledger(root, prints), *_check_tables(root, prints)]
    except ValueError as e:  # a damaged segment: nothing can be said of the rest
        problems = [str(e)]
    for folder in sorted(p for p in (root / "shards").glob("*") if p.is_dir()):
        problems += _check_set(root, folder)
    return problems


def _check_ledger(root: Path, prints: dict[str, str]) -> Iterator[str]:
    """Every artifact that a record names is there and has its digest; every attempt is closed."""
    ledger = Ledger(root)
    for stage in STAGES:
        records = ledger.read(stage, prints[stage])
        yield from (f"{problem}; `crosspair retry RUN --damaged` and a run mend that" for _, problem in damaged_units(root, stage, records))
        for unit, record in records.items():
            if record.outcome != Outcome.DONE and record.reason not in REASONS:
                yield f"ledger/{stage}: unit {unit} is {record.outcome} without a known reason ({record.reason!r})"
        for attempt in (ledger.folder / stage / "open").glob("*"):
            yield f"{attempt}: an attempt without an outcome; run `crosspair run` again"


def _check_tables(root: Path, prints: dict[str, str]) -> Iterator[str]:
    """Every unit listed or planned has an outcome, the one in the ledger; every set that the tables name is there."""
    packed = any((root / "shards").glob("*"))
    for name in ("sources", "clips", "portraits", "outcomes", *(("identities", "pairs", "samples") if packed else ())):
        if not (root / "tables" / f"{name}.parquet").is_file():
            yield f"{root / 'tables' / name}.parquet: missing"
    rows = tables.load(root, "outcomes")
    records = {stage: Ledger(root).read(stage, prints[stage]) for stage in STAGES}
    for r in rows:
        if r["stage"] in records:
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
        if not (root / "shards" / name / INDEX_NAME).is_file():
            yield f"{root / 'shards' / name}: no index, though the tables name the set"
    for sample in samples:
        if (sample["outcome"] == Outcome.DONE) != bool(sample["tar"]):
            yield f"tables: pair {sample['pair']} is {sample['outcome'] or 'out'}, but its tar is {sample['tar'] or 'none'}"


def _check_set(root: Path, folder: Path) -> Iterator[str]:
    """Index and tars agree both ways; every member has its digest and its place; index and samples table agree."""
    try:
        rows = read_index(folder).to_pylist()
    except (ValueError, OSError) as e:
        yield str(e)
        return
    by_tar: dict[str, list[dict]] = {}
    for r in rows:
        by_tar.setdefault(r["tar"], []).append(r)
    for path in sorted(folder.glob("*.tar")):
        if path.name not in by_tar:
            yield f"{path}: not in the index"
    for name, members in sorted(by_tar.items()):
        yield from _check_tar(folder / name, members)
    if len({r["sample"] for r in rows}) < len(rows):
        yield f"{folder}: a sample stands twice in the index"
    accepted = {s["pair"]: s["tar"] for s in tables.load(root, "samples") if s["set"] == folder.name and s["tar"]}
    indexed = {r["sample"]: r["tar"] for r in rows}
    for key in sorted(accepted.keys() | indexed.keys()):
        if key not in accepted or key not in indexed:
            yield f"{folder}: sample {key} is in {'the tables' if key in accepted else 'the index'} only"
        elif accepted[key] != indexed[key]:
            yield f"{folder}: sample {key} is in {indexed[key]}, by the tables in {accepted[key]}"


def _check_tar(path: Path, rows: list[dict]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: missing, though the index names it"
        return
    found: dict[str, tuple[int, bytes]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None:
                    yield f"{path}: {member.name} is no plain file"
                    continue
                found[member.name] = (member.offset_data, file.read())
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
            offset, data = found.pop(key, (-1, b""))
            if offset == -1:
                yield f"{path}: {key} is missing"
            elif offset != m["offset"] or len(data) != m["size"]:
                yield f"{path}: {key} is not where the index says"
            elif content_digest(data) != m["digest"]:
                yield f"{path}: {key} does not have its digest"
            elif m["name"] == INFO:
                yield from (f"{path}: {key} and the index differ in `{field}`" for field in _contradictions(SampleInfo.decode(data), row))
    yield from (f"{path}: {name} is not in the index" for name in sorted(found))


def _contradictions(info: SampleInfo, row: dict) -> list[str]:
    """Fields in which KEY.json and its row of the index differ."""
    shared = ("clip", "portrait", "performer", "appearance", "split", "frames", "fps", "size_px", "has_audio")
    return [f for f in shared if getattr(info, f) != row[f]] + (["key"] if info.key != row["sample"] else [])


def diff(a: Path, b: Path) -> list[str]:
    """How the samples of two runs differ, a sentence each; empty when they are the same, byte for byte.

    Bytes are read, not believed. In which tar a sample stands is no difference: a run that grew has other tars than one made at once.
    """
    sets = {root: {p.name: p for p in (root / "shards").glob("*") if p.is_dir()} for root in (a, b)}
    for root in (a, b):
        if not sets[root]:
            raise ValueError(f"{root}: holds no shards")
    differences = [f"set {name} is in one run only" for name in sorted(set(sets[a]) ^ set(sets[b]))]
    for name in sorted(set(sets[a]) & set(sets[b])):
        left, right = ({r["sample"]: r for r in read_index(sets[root][name]).to_pylist()} for root in (a, b))
        for key in sorted(set(left) | set(right)):
            if key not in left or key not in right:
                differences.append(f"{name}: sample {key} is in {a if key in left else b} only")
                continue
            try:
                members = [read_members(sets[root][name], side[key], MEMBERS) for root, side in ((a, left), (b, right))]
            except ValueError as e:
                differences.append(f"{name}: {e}")
                continue
            names = sorted(n for n in members[0].keys() | members[1].keys() if members[0].get(n) != members[1].get(n))
            differences += [f"{name}: {key}.{n} differs" for n in names]
    return differences
