"""The ledger: what was done to each unit by each stage. Plain JSONL segments, each written once, whole, by one writer.

    RUN/ledger/STAGE/<time>-<writer>.jsonl                          one record a line, its checksum last
    RUN/ledger/STAGE/<time>-<writer>.parquet                        many such segments made into one
    RUN/ledger/STAGE/open/<unit>-<session>-<time>-<attempt>         an attempt under way: there before the work begins, gone when its
                                                                    worker outlived it
A unit is done when a record with the stage's present fingerprint says so; records of other fingerprints are history.
"""

from __future__ import annotations

import json
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from schemas.outcomes import Outcome
from schemas.sample import parquet_bytes, read_parquet
from schemas.store import Place, Store, open_store

STAGES = ("ingest", "faces", "portraits", "identity", "motion", "reenact", "regions")  # that write records, in the order of work
_FLUSH_EVERY_S = 2.0
_MAX_SEGMENTS = 32  # of one kind and stage, before they are made into one
_LISTED_AGAIN = 10  # times that segments may vanish between being listed and being read
_NESTED = ("digests", "data", "children")  # fields of a record that a Parquet segment keeps as JSON


@dataclass(frozen=True, kw_only=True)
class Record:
    """How one attempt of a stage at a unit ended.

    Attributes:
        folder: the artifact folder of this attempt, relative to the run; this record makes it the winner.
        digests: file name -> digest, for what is in it.
        data: what was measured.
        children: the units that came of it, as JSON objects of schemas.units.
    """

    stage: str
    unit: str
    kind: str
    parent: str
    source_uri: str
    fingerprint: str
    outcome: Outcome
    reason: str = ""
    message: str = ""
    attempts: int = 1
    seconds: float = 0.0
    folder: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    children: list[dict[str, Any]] = field(default_factory=list)


class Ledger:
    def __init__(self, root: Place) -> None:
        self._root = open_store(root)

    def read(self, stage: str, fingerprint: str) -> dict[str, Record]:
        """Unit -> the record that counts: the first `done`, else the last. Raises ValueError for a damaged segment."""
        records: dict[str, Record] = {}
        for record in self.history(stage):
            if record.fingerprint == fingerprint and (record.unit not in records or records[record.unit].outcome != Outcome.DONE):
                records[record.unit] = record
        return records

    def history(self, stage: str) -> Iterator[Record]:
        """Every record of a stage, of all fingerprints, in the order of writing. Raises ValueError for a damaged segment."""
        for name, raws in self._load(stage):
            with self._damage(name):
                records = [Record(**{**raw, "outcome": Outcome(raw["outcome"])}) for raw in raws]
            yield from records

    def open_attempts(self, stage: str) -> list[str]:
        """Names of the attempts at a stage's units that are under way, or were when their worker died."""
        return self._root.names(f"ledger/{stage}/open/")

    def close_attempts(self) -> None:
        """Takes away what killed sessions left open; only the process that holds the run may do so."""
        for stage in STAGES:
            self._root.delete(self.open_attempts(stage))

    def forget(self, stage: str, fingerprint: str, units: Set[str]) -> None:
        """Takes the records of `units` under one fingerprint out of the ledger: they are due again. For the process that holds the run."""
        if units:
            self.rewrite(stage, lambda raw: None if raw["unit"] in units and raw["fingerprint"] == fingerprint else raw)

    def raws(self, stage: str) -> Iterator[dict[str, Any]]:
        """As `history`, records as they are kept: those of older versions may lack fields."""
        for _, raws in self._load(stage):
            yield from raws

    def rewrite(self, stage: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Puts what `change` makes of each record in its place, and takes it out for None. For the process that holds the run."""
        for name, raws in self._load(stage):
            changed = [new for raw in raws if (new := change(raw)) is not None]
            if not changed:
                self._root.delete([name])
            elif changed != raws:
                self._root.write(name, _segment(name, changed))

    def compact(self) -> None:
        """Makes one segment of each stage's many. A kill in between leaves records twice, which changes nothing."""
        for stage in STAGES:
            for suffix in (".jsonl", ".parquet"):
                if sum(n.endswith(suffix) for n in self._segments(stage)) > _MAX_SEGMENTS:
                    loaded = list(self._load(stage, suffix))
                    merged = loaded[0][0].removesuffix(suffix) + ".parquet"
                    self._root.write(merged, _segment(merged, [r for _, raws in loaded for r in raws]))
                    self._root.delete([name for name, _ in loaded if name != merged])

    def _load(self, stage: str, suffix: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Segments, in the order of writing."""
        for tries_left in reversed(range(_LISTED_AGAIN)):
            names = [n for n in self._segments(stage) if n.endswith(suffix)]
            try:
                found = self._root.read_many(names)
                break
            except FileNotFoundError:  # a run makes one of many, while `status` looks
                if not tries_left:
                    raise
                time.sleep(0.1)
        for name, data in zip(names, found, strict=True):
            with self._damage(name):
                raws = _read_segment(name, data)
            yield name, raws

    @contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError) as e:  # pa.ArrowInvalid is a ValueError
            where = self._root.at(name)
            raise ValueError(f"{where}: a damaged segment of the ledger; take it away, and what it tells of is done again: {e!r}") from e

    def _segments(self, stage: str) -> list[str]:
        """In the order of writing: their names begin with the time."""
        names = self._root.names(f"ledger/{stage}/")
        return [n for n in names if n.count("/") == 2 and n.endswith((".jsonl", ".parquet"))]


def _read_segment(name: str, data: bytes) -> list[dict[str, Any]]:
    """Raises ValueError for a damaged one."""
    if name.endswith(".parquet"):
        rows: list[dict[str, Any]] = read_parquet(data, name, None, "").to_pylist()
        return [{**row, **{field: json.loads(row[field]) for field in _NESTED}} for row in rows]
    *lines, rest = data.decode().split("\n")  # not `splitlines`, to which a flipped newline may be a newline too
    if rest or not lines:
        raise ValueError("it was cut off")
    return [json.loads(_checked(line)) for line in lines]


def _segment(name: str, raws: Iterable[Mapping[str, Any]]) -> bytes:
    """The bytes of a segment. Not to be empty: Parquet takes its columns from the first record."""
    if name.endswith(".parquet"):
        rows = [{**raw, "outcome": str(raw["outcome"]), **{field: _json(raw[field]) for field in _NESTED}} for raw in raws]
        return parquet_bytes(pa.Table.from_pylist(rows))
    return "".join(f"{_with_checksum(_json(raw))}\n" for raw in raws).encode()


def _with_checksum(line: str) -> str:
    return f'{line[:-1]},"crc32":"{zlib.crc32(line.encode()):08x}"}}'


def _checked(line: str) -> str:
    """The record without its checksum, if it has one. Raises ValueError where that does not hold: a flipped bit may still be JSON."""
    record, mark, _ = line.rpartition(',"crc32":')
    if mark and _with_checksum(record + "}") != line:
        raise ValueError("a record that does not have its checksum")
    return record + "}" if mark else line


def _json(thing: Any) -> str:
    return json.dumps(thing, separators=(",", ":"), sort_keys=True)


class LedgerWriter:
    """One per worker and stage. Records are in the run after `flush`; every few seconds that happens by itself."""

    def __init__(self, root: Place, stage: str) -> None:
        self._root, self._folder = open_store(root), f"ledger/{stage}"
        self._records: list[Record] = []
        self._attempts: dict[str, str] = {}
        self._written = time.monotonic()

    def begin(self, unit: str, session: str) -> int:
        """Notes that work on `unit` begins; how many attempts at it are open in this session, this one included.

        An attempt stays open only when its worker died. A new session (the driver was started again) counts from one.
        """
        attempt = f"{self._folder}/open/{unit}-{session}-{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        self._root.mark(attempt)
        self._attempts[unit] = attempt
        return len(self.open_since(unit, session))

    def open_since(self, unit: str, session: str) -> list[float]:
        """When the attempts at `unit` that are open in this session began, in seconds of the epoch."""
        return sorted(int(name.split("-")[-2]) / 1e9 for name in self._root.names(f"{self._folder}/open/{unit}-{session}-"))

    def withdraw(self, unit: str) -> None:
        """Nothing was done at the attempt that was begun."""
        self._root.delete([self._attempts.pop(unit)])

    def add(self, record: Record) -> None:
        """The unit's attempt ends here, before its record is in the run: whatever kills the worker now, it was not this unit."""
        self._records.append(record)
        if record.unit in self._attempts:
            self.withdraw(record.unit)
        if time.monotonic() - self._written > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self._records:
            name = f"{self._folder}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            self._root.write(name, _segment(name, map(asdict, self._records)))
        for unit in {r.unit for r in self._records}:  # attempts whose worker died are settled by the record too
            self._root.delete(self._root.names(f"{self._folder}/open/{unit}-"))
        self._records, self._written = [], time.monotonic()


def sweep(root: Store, records: dict[str, dict[str, Record]]) -> None:
    """Takes away what attempts left that no record names: those of killed workers, and losers of a race."""
    for stage, by_unit in records.items():
        prints = {r.fingerprint[:8] for r in by_unit.values()}
        for attempt in root.folders(f"artifacts/{stage}", depth=3):
            unit, name = attempt.split("/")[-2:]
            record = by_unit.get(unit)
            if name.split("-")[0] in prints and (record is None or attempt != record.folder):
                root.delete_folder(attempt)


def damaged_units(root: Store, stage: str, records: Mapping[str, Record]) -> Iterator[tuple[str, str]]:
    """Units whose artifacts are not what their record says, and a sentence about each; reads every byte."""
    for unit, record in records.items():
        for name, digest in record.digests.items() if record.outcome == Outcome.DONE else ():
            file = f"{record.folder}/{name}"
            try:
                found = root.digest(file)
            except FileNotFoundError:
                yield unit, f"{root.at(file)}: missing, though {stage} made it for {unit}"
                continue
            if found != digest:
                yield unit, f"{root.at(file)}: changed since {stage} made it"


def due_again(place: Place, prints: Mapping[str, str], *, reason: str | None = None, damaged: bool = False) -> int:
    """Makes units due again; how many. `prints`: stage -> fingerprint.

    All that failed or are quarantined; or those of one reason, rejections too; or, with `damaged`, those whose artifacts are
    missing or changed.
    """
    root, total = open_store(place), 0
    ledger = Ledger(root)
    for stage in STAGES:
        records = ledger.read(stage, prints.get(stage, ""))
        if damaged:
            units = {unit for unit, _ in damaged_units(root, stage, records)}
        elif reason:
            units = {r.unit for r in records.values() if r.reason == reason}
        else:
            units = {r.unit for r in records.values() if r.outcome in (Outcome.FAILED, Outcome.QUARANTINED)}
        ledger.forget(stage, prints.get(stage, ""), units)
        total += len(units)
    return total
