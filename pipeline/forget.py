"""Forget: takes all that derives from a person out of a run, and leaves a tombstone that keeps it out of later ones.

The tombstone is written first. From then on each step asks it about what is there, and not what was done before: killed anywhere, the
next `forget`, of whomever, or the next run goes on. What the tombstone covers and a later run brings back, such as a file under another
name, is taken out in the same way (`enforce`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline import tables
from pipeline.derived import Books, Derived, Row, called, derived, known_names, read_books
from pipeline.ledger import STAGES, Ledger
from pipeline.pack import take_out
from pipeline.sources import file_identity
from pipeline.storage import exclusive, read_run_file
from pipeline.tombstones import Tombstones, read_tombstones, write_tombstones
from schemas.latents import FOLDER as LATENTS
from schemas.latents import prune, read_latents_index
from schemas.outcomes import Outcome
from schemas.sample import INDEX_NAME, read_index
from schemas.store import Place, Store, open_store
from stages.faces import TRACKS
from stages.ingest import SOUND

# Columns of tables by which a row is about a unit, a file or a person.
_ABOUT = ("unit", "parent", "source", "source_uri", "uri", "content", "shot", "clip", "portrait", "pair", "performer", "appearance")
_DOUBT = re.compile(r"(.*?) \((-?[0-9.]+)\)(?:, |$)")


@dataclass
class Removal:
    """What is taken out, or would be.

    Attributes:
        names: what the person is called in the run.
        units: by kind: source files, shots, clips, portraits, pairs.
        samples: pair set -> samples that are withdrawn.
        records: of the ledger.
        rows: of the tables.
        files: artifacts, the report, what was cached.
        bytes: of those files and samples.
        partly: files that show others too, whose clips stay.
        newer: clips and portraits of which the tables do not say yet whom they show. Some may be his, and stay.
    """

    names: list[str] = field(default_factory=list)
    units: dict[str, int] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    records: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    partly: int = 0
    newer: int = 0

    def __str__(self) -> str:
        parts = [f"{n} {kind}" for kind, n in self.units.items() if n]
        parts += [f"{n} samples of set {name}" for name, n in self.samples.items() if n]
        parts += [f"{self.records} records of the ledger", f"{self.rows} rows of tables", f"{self.files} files"]
        return f"{', '.join(parts)}; {self.bytes / 1e6:.1f} MB"


def forget(place: Place, person: str, *, say: Callable[[str], None] = lambda _: None) -> Removal:
    """Takes a person out of a run for good, by an identity, one that became it, or the manifest's name. Done before, it does nothing.

    Raises:
        ValueError: no run, nobody of that name, another process on the run, or a damaged table, index or segment of the ledger.
    """
    root = open_store(place)
    read_run_file(root)
    with exclusive(root):
        # Of sessions that were killed; this process alone holds the run now.
        Ledger(root).close_attempts()
        root.clear_unfinished()
        tombstones, found, removal, plan = _foreseen(root, person)
        write_tombstones(root, tombstones)
        _redact_run_file(root, found)
        _carry_out(root, tombstones, plan, say)
    return removal


def foresee_forget(place: Place, person: str) -> Removal:
    """What `forget` would take out. Changes nothing. Raises ValueError as `forget`."""
    root = open_store(place)
    read_run_file(root)
    return _foreseen(root, person)[2]


def enforce(root: Store, say: Callable[[str], None] = lambda _: None) -> None:
    """Takes out what the tombstones cover: an unfinished `forget`, or what has come back. For the process that holds the run."""
    before = read_tombstones(root)
    if not before:
        return
    found = _found(read_books(root), before, set())
    tombstones = before.with_more(found.everything, found.partly)
    if tombstones is not before:
        write_tombstones(root, tombstones)
    if plan := _plan(root, tombstones):
        say(f"forgotten before and taken out now: {_removal(root, found, plan)}")
        _carry_out(root, tombstones, plan, say)


def unfinished(root: Store) -> bool:
    """Whether anything is there that the tombstones cover. Raises ValueError for damaged ones."""
    tombstones = read_tombstones(root)
    return bool(tombstones) and bool(_plan(root, tombstones))


def _foreseen(root: Store, person: str) -> tuple[Tombstones, Derived, Removal, _Plan]:
    before, books = read_tombstones(root), read_books(root)
    names = called(books, person)
    if not names and person not in before:
        near = difflib.get_close_matches(person, sorted(known_names(books)), n=3, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(f"{root}: nobody is called {person!r}{hint}; tables/identities.parquet lists who is known")
    found = _found(books, before, names)
    tombstones = before.with_more(found.everything | {person}, found.partly)
    plan = _plan(root, tombstones)
    plan.files = sorted({*plan.files, *_by_products(root)})
    removal = _removal(root, found, plan)
    removal.newer = len(books.newer - found.everything)
    return tombstones, found, removal, plan


def _found(books: Books, tombstones: Tombstones, names: set[str]) -> Derived:
    """What derives from people of these names, and from all that the tombstones cover."""
    dead = {n for n in known_names(books) if n in tombstones}
    names = names | {other for n in dead for other in called(books, n)}
    about = {s: books.uri[s] | books.contents[s] for s in {*books.uri, *books.contents}}
    return derived(
        books,
        names=names,
        sources=books.refused | {s for s, of in about.items() if s in tombstones or any(x in tombstones for x in of)},
        units={u for units in books.units.values() for u in units if u in tombstones},
        partly={s for s, of in about.items() if any(tombstones.in_part(x) for x in of)},
    )


@dataclass
class _Plan:
    """Where what is to go lies; false where nothing is.

    Attributes:
        folders, files: to be taken away, of artifacts and beside the shards.
        records: of the ledger, that go or change.
        samples: pair set -> keys; their bytes, latents' too.
        latents: pair sets whose latents are of samples that go or have gone.
        rows: table -> rows that go or change.
    """

    folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    records: int = 0
    samples: dict[str, set[str]] = field(default_factory=dict)
    sample_bytes: int = 0
    latents: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.folders or self.files or self.records or self.samples or self.latents or self.rows)


def _plan(root: Store, tombstones: Tombstones) -> _Plan:
    plan, ledger = _Plan(), Ledger(root)
    shown: dict[str, set[str]] = {}  # folder of a unit whose file shows others too -> artifacts that stay
    for stage in STAGES:
        for raw in ledger.raws(stage):
            changed = without(raw, tombstones)
            plan.records += changed != raw
            if stage in ("ingest", "faces") and changed is not None and _shows_others(raw, tombstones):
                folder = f"artifacts/{stage}/{raw['unit'][:2]}/{raw['unit']}"
                shown.setdefault(folder, set()).update(f"{changed['folder']}/{file}" for file in changed["digests"])
    plan.folders = [f for f in root.folders("artifacts", depth=3) if f.rpartition("/")[2] in tombstones]
    plan.files = [name for folder, stay in shown.items() for name in root.names(f"{folder}/") if name not in stay]
    for folder in root.folders("shards", depth=1):
        _plan_set(root, folder, tombstones, plan)
    for name in tables.SCHEMAS:
        if name == "pairs":
            pairs = tables.pairs(root)
            gone = len(pairs) - len(_without_pairs(pairs, tombstones))
        else:
            before = tables.load(root, name)
            same = {id(r) for r in before}
            gone = len(before) - sum(id(r) in same for r in without_rows(name, before, tombstones))
        if gone:
            plan.rows[name] = gone
    return plan


def _plan_set(root: Store, folder: str, tombstones: Tombstones, plan: _Plan) -> None:
    index: list[Row] = read_index(root.sub(folder)).to_pylist() if root.size(f"{folder}/{INDEX_NAME}") >= 0 else []
    gone = [r for r in index if any(r[k] in tombstones for k in ("sample", "clip", "portrait", "performer", "appearance"))]
    if gone:
        plan.samples[folder] = {r["sample"] for r in gone}
        plan.sample_bytes += sum(m["size"] for r in gone for m in r["members"])
    latents = read_latents_index(root.sub(f"{folder}/{LATENTS}"))
    encoded = [r for r in latents.rows if r["sample"] in tombstones] if latents else []
    if encoded:
        plan.latents.append(folder)
        plan.sample_bytes += sum(r["size"] for r in encoded)
    named = {r["tar"] for r in index} | {f"{LATENTS}/{r['tar']}" for r in (latents.rows if latents else ())}
    for name in root.names(f"{folder}/"):
        rest = name.removeprefix(f"{folder}/")
        # What somebody keeps of a sample beside its tar is called as the sample; a tar that no index names may hold anybody.
        ours = rest.endswith(".tar") and rest.rpartition("/")[0] in ("", LATENTS)
        if rest.rpartition("/")[2].split(".")[0] in tombstones or (ours and rest not in named):
            plan.files.append(name)


def _by_products(root: Store) -> Iterator[str]:
    """Files that are made anew when they are missing, and may show anybody; and what killed replays left."""
    for prefix in ("report/", "cache/", "replay-"):
        yield from root.names(prefix)


def _removal(root: Store, found: Derived, plan: _Plan) -> Removal:
    files = [*plan.files, *(name for folder in plan.folders for name in root.names(f"{folder}/"))]
    kinds = {"source files": found.sources, "shots": found.shots, "clips": found.clips, "portraits": found.portraits, "pairs": found.pairs}
    return Removal(
        names=sorted(found.names),
        units={kind: len(ids) for kind, ids in kinds.items()},
        samples={folder.rpartition("/")[2]: len(keys) for folder, keys in plan.samples.items()},
        records=plan.records,
        rows=sum(plan.rows.values()),
        files=len(files),
        bytes=plan.sample_bytes + sum(max(root.size(name), 0) for name in files),
        partly=sum("/" in name for name in found.partly),  # URIs; contents have none
    )


def _carry_out(root: Store, tombstones: Tombstones, plan: _Plan, say: Callable[[str], None]) -> None:
    for folder in ("report", "cache", *{name.split("/")[0] for name in root.names("replay-")}):
        root.delete_folder(folder)
    root.delete(plan.files)  # first, since a new tar may be called as one that no index named
    for folder in plan.folders:
        root.delete_folder(folder)
    config = read_run_file(root)["config"]
    for folder, keys in plan.samples.items():
        name = folder.rpartition("/")[2]
        max_mb, seed = config["shards"]["max_mb"], config["pairs"]["seed"]
        take_out(root.sub(folder), keys, max_mb=max_mb, seed=seed, progress=lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
    for folder in plan.latents:  # of a set whose index lost its samples before a kill; `take_out` did the others
        index = read_index(root.sub(folder)).select(["sample", "digest"]).to_pylist() if root.size(f"{folder}/{INDEX_NAME}") >= 0 else []
        prune(root.sub(folder), {r["sample"]: r["digest"] for r in index}, say)
    ledger = Ledger(root)
    for stage in STAGES:
        ledger.rewrite(stage, lambda raw: without(raw, tombstones))
    _redact_tables(root, tombstones)


def _redact_tables(root: Store, tombstones: Tombstones) -> None:
    faces = Ledger(root).read("faces", read_run_file(root)["fingerprints"].get("faces", ""))
    tar_of: dict[tuple[str, str], str] = {}
    for folder in root.folders("shards", depth=1):
        if root.size(f"{folder}/{INDEX_NAME}") >= 0:
            index = read_index(root.sub(folder)).select(["sample", "tar"]).to_pylist()
            tar_of |= {(folder.rpartition("/")[2], r["sample"]): r["tar"] for r in index}
    for name in tables.SCHEMAS:
        if root.size(f"tables/{name}.parquet") < 0:
            continue
        if name == "pairs":
            tables.save_pairs(root, _without_pairs(tables.pairs(root), tombstones))
            continue
        rows = without_rows(name, tables.load(root, name), tombstones)
        if name == "samples":
            rows = [{**r, "tar": tar_of.get((r["set"], r["pair"]), "")} for r in rows]
        if name == "outcomes":
            rows = [_as_recorded(r, faces.get(r["unit"]) if r["stage"] == "faces" else None) for r in rows]
        tables.save(root, name, rows)


def _as_recorded(row: Row, record: Any) -> Row:
    """A row of outcomes as its record has it by now: a shot that showed nobody else is not done any more."""
    if record is None or record.reason != "forgotten":
        return row
    return {**row, "outcome": record.outcome, "reason": record.reason, "message": record.message}


def without(raw: Row, tombstones: Tombstones) -> Row | None:
    """A record of the ledger without what was forgotten; None for one that is of that alone. A record that says nothing of it comes back.

    Of a file that shows others too, the sound and the list of all faces go as well: nobody can say whose those are.
    """
    if any(x in tombstones for x in (raw["unit"], raw["parent"], raw["source_uri"], raw["data"].get("content", ""))):
        return None
    children = [_nameless(c, tombstones) for c in raw["children"] if not any(x in tombstones for x in _ids(c))]
    if len(children) < len(raw["children"]) and raw["stage"] != "faces":
        return None
    if raw["outcome"] != Outcome.DONE or not (_shows_others(raw, tombstones) or len(children) < len(raw["children"])):
        return {**raw, "children": children}
    if raw["stage"] == "ingest":
        digests = {file: digest for file, digest in raw["digests"].items() if file != SOUND}
        return {**raw, "children": [{**c, "has_sound": False} for c in children], "digests": digests}
    if raw["stage"] == "faces" and not children:
        nothing = {"folder": "", "digests": {}, "data": {}, "children": []}
        return {**raw, **nothing, "outcome": Outcome.REJECTED.value, "reason": "forgotten", "message": ""}
    if raw["stage"] == "faces":
        theirs = {file for c in children for file in c["digests"]} - {TRACKS}
        return {**raw, "children": children, "digests": {file: d for file, d in raw["digests"].items() if file in theirs}}
    return {**raw, "children": children}


def _shows_others(raw: Row, tombstones: Tombstones) -> bool:
    """Whether a record is of a file of which a part was forgotten."""
    contents = (raw["data"].get("content", ""), *(c.get("content", "") for c in raw["children"]))
    return tombstones.in_part(raw["source_uri"]) or any(map(tombstones.in_part, contents))


def _ids(unit: Any) -> Iterator[str]:
    """All ids, URIs and contents in a unit as the ledger has it. Whose they are called says `identity`, which is another matter."""
    for key, value in unit.items():
        if isinstance(value, dict) and key not in ("digests", "scores", "still_scores"):
            yield from _ids(value)
        elif isinstance(value, str) and key in ("id", "uri", "content", "shot", "clip"):
            yield value


def _nameless(unit: Any, tombstones: Tombstones) -> Any:
    """A unit in which a source that bears a forgotten name is called as its file."""
    if not isinstance(unit, dict):
        return unit
    unit = {key: _nameless(value, tombstones) for key, value in unit.items()}
    return unit | {"identity": file_identity(unit["uri"])} if "uri" in unit and unit.get("identity", "") in tombstones else unit


def without_rows(name: str, rows: Iterable[Row], tombstones: Tombstones) -> list[Row]:
    """The rows of a table without what was forgotten; rows that say nothing of it come back as they are."""
    if name == "identities":
        kept = [r for r in rows if r["identity"] not in tombstones and r["name"] not in tombstones]
        members = [[m for m in r["members"] if m not in tombstones] for r in kept]
        doubts = [", ".join(f"{other} ({how})" for other, how in _DOUBT.findall(r["doubts"]) if other not in tombstones) for r in kept]
        changes = [{"members": m, "doubts": d} for m, d in zip(members, doubts, strict=True)]
        return [r if {**r, **change} == r else {**r, **change} for r, change in zip(kept, changes, strict=True)]
    kept = [r for r in rows if not any((r.get(k) or "") in tombstones for k in _ABOUT)]
    return [{**r, "identity": file_identity(r["uri"])} if (r.get("identity") or "") in tombstones else r for r in kept]


def _without_pairs(pairs: pa.Table, tombstones: Tombstones) -> pa.Table:
    """By columns, as there may be millions."""
    gone = pa.array([False] * len(pairs), pa.bool_())
    for key in ("clip", "portrait", "performer", "appearance"):
        dead = [x for x in pc.unique(pairs[key]).to_pylist() if x in tombstones]
        gone = pc.or_(gone, pc.is_in(pairs[key], value_set=pa.array(dead, pa.string())).combine_chunks())
    return pairs.filter(pc.invert(gone))


def _redact_run_file(root: Store, found: Derived) -> None:
    """Takes files that are forgotten out of the config that run.yaml keeps, where it lists them one by one."""

    def is_his(entry: str) -> bool:
        tail = re.sub(r"^(\.{1,2}/)+|^~/", "", entry)
        return any(uri == entry or uri.endswith(f"/{tail}") for uri in found.uris)

    frozen = read_run_file(root)
    states = [frozen, *frozen.get("history", [])]
    redacted = [{**state, "config": without_entries(state["config"], is_his)} for state in states]
    if redacted != states:
        content = redacted[0] | ({"history": redacted[1:]} if "history" in frozen else {})
        root.write("run.yaml", yaml.safe_dump(content, sort_keys=False).encode())


def without_entries(config: Mapping[str, Any], is_forgotten: Callable[[str], bool]) -> dict[str, Any]:
    """A config whose lists of clips and portraits do not name files that are forgotten."""
    shown = dict(config)
    for key in ("clips", "portraits"):
        entries = config.get(key, [])
        hidden = ["forgotten" if is_forgotten(e) else e for e in ([entries] if isinstance(entries, str) else entries)]
        if "forgotten" in hidden:
            shown[key] = hidden
    return shown
