"""The ledger: what was done to each unit by each stage. Plain JSONL segments, each written once, whole, by one writer.

    RUN/ledger/STAGE/<time>-<writer>.jsonl     one record a line
    RUN/ledger/STAGE/open/<unit>-<attempt>     an attempt under way: there before the work begins, gone when its worker outlived it

A unit is done when a record with the stage's present fingerprint says so; records of other fingerprints are history.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage import write_atomic
from schemas.ids import file_digest
from schemas.outcomes import Outcome

STAGES = ("ingest", "faces", "portraits", "motion", "reenact", "regions")  # that write records, in the order of work
_FLUSH_EVERY_S = 2.0
_MAX_SEGMENTS = 32


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
    def __init__(self, root: Path) -> None:
        self.folder = root / "ledger"

    def read(self, stage: str, fingerprint: str) -> dict[str, Record]:
        """Unit -> the record that counts: the first `done`, else the last. Raises ValueError for a damaged segment."""
        records: dict[str, Record] = {}
        for path in sorted((self.folder / stage).glob("*.jsonl")):
            try:
                segment = [json.loads(line) for line in path.read_text().splitlines()]
                here = [Record(**{**raw, "outcome": Outcome(raw["outcome"])}) for raw in segment if raw["fingerprint"] == fingerprint]
            except (ValueError, KeyError, TypeError) as e:
                raise ValueError(f"{path}: a damaged segment of the ledger; take it away, and what it tells of is done again: {e!r}") from e
            for record in here:
                known = records.get(record.unit)
                if known is None or known.outcome != Outcome.DONE:
                    records[record.unit] = record
        return records

    def close_attempts(self) -> None:
        """Takes away what killed sessions left open; only the process that holds the run may do so."""
        for attempt in self.folder.glob("*/open/*"):
            attempt.unlink(missing_ok=True)

    def forget(self, stage: str, fingerprint: str, units: Set[str]) -> None:
        """Takes the records of `units` under one fingerprint out of the ledger: they are due again. For the process that holds the run."""
        if not units:
            return
        for path in sorted((self.folder / stage).glob("*.jsonl")):
            lines = path.read_text().splitlines()
            raws = [json.loads(line) for line in lines]
            kept = [line for line, r in zip(lines, raws, strict=True) if r["unit"] not in units or r["fingerprint"] != fingerprint]
            if not kept:
                path.unlink()
            elif len(kept) < len(lines):
                _write_segment(path, kept)

    def compact(self) -> None:
        """Makes one segment of each stage's many. A kill in between leaves records twice, which changes nothing."""
        for folder in self.folder.glob("*"):
            paths = sorted(folder.glob("*.jsonl"))
            if len(paths) > _MAX_SEGMENTS:
                _write_segment(paths[0], [line for path in paths for line in path.read_text().splitlines()])
                for path in paths[1:]:
                    path.unlink()


def _write_segment(path: Path, lines: Sequence[str]) -> None:
    write_atomic(path, ("\n".join(lines) + "\n").encode())


class LedgerWriter:
    """One per worker and stage. Records are on disk after `flush`; every few seconds that happens by itself."""

    def __init__(self, root: Path, stage: str) -> None:
        self._folder = root / "ledger" / stage
        self._records: list[Record] = []
        self._attempts: dict[str, Path] = {}
        self._written = time.monotonic()

    def begin(self, unit: str, session: str) -> int:
        """Notes that work on `unit` begins; how many attempts at it are open in this session, this one included.

        An attempt stays open only when its worker died. A new session (the driver was started again) counts from one.
        """
        folder = self._folder / "open"
        folder.mkdir(parents=True, exist_ok=True)
        attempt = folder / f"{unit}-{session}-{uuid.uuid4().hex[:8]}"
        attempt.touch()
        self._attempts[unit] = attempt
        return len(list(folder.glob(f"{unit}-{session}-*")))

    def open_since(self, unit: str, session: str) -> list[float]:
        """When the attempts at `unit` that are open in this session began, in seconds of the epoch."""
        return sorted(p.stat().st_mtime for p in (self._folder / "open").glob(f"{unit}-{session}-*"))

    def withdraw(self, unit: str) -> None:
        """Nothing was done at the attempt that was begun."""
        self._attempts.pop(unit).unlink(missing_ok=True)

    def add(self, record: Record) -> None:
        """The unit's attempt ends here, before its record is on disk: whatever kills the worker now, it was not this unit."""
        self._records.append(record)
        if attempt := self._attempts.pop(record.unit, None):
            attempt.unlink(missing_ok=True)
        if time.monotonic() - self._written > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self._records:
            lines = [json.dumps(asdict(r), separators=(",", ":"), sort_keys=True) for r in self._records]
            _write_segment(self._folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl", lines)
        for unit in {r.unit for r in self._records}:  # attempts whose worker died are settled by the record too
            for attempt in (self._folder / "open").glob(f"{unit}-*"):
                attempt.unlink(missing_ok=True)
        self._records, self._written = [], time.monotonic()


def sweep(root: Path, records: dict[str, dict[str, Record]]) -> None:
    """Takes away what attempts left that no record names: those of killed workers, and losers of a race."""
    for stage, by_unit in records.items():
        prints = {r.fingerprint[:8] for r in by_unit.values()}
        for unit_folder in (root / "artifacts" / stage).glob("*/*"):
            record = by_unit.get(unit_folder.name)
            for attempt in unit_folder.iterdir():
                mine = attempt.name.split("-")[0] in prints
                if mine and (record is None or str(attempt.relative_to(root)) != record.folder):
                    shutil.rmtree(attempt)


def damaged_units(root: Path, stage: str, records: Mapping[str, Record]) -> Iterator[tuple[str, str]]:
    """Units whose artifacts are not what their record says, and a sentence about each; reads every byte."""
    for unit, record in records.items():
        for name, digest in record.digests.items() if record.outcome == Outcome.DONE else ():
            path = root / record.folder / name
            if not path.is_file():
                yield unit, f"{path}: missing, though {stage} made it for {unit}"
            elif file_digest(path) != digest:
                yield unit, f"{path}: changed since {stage} made it"


def due_again(root: Path, prints: Mapping[str, str], *, reason: str | None = None, damaged: bool = False) -> int:
    """Makes units due again; how many. `prints`: stage -> fingerprint.

    All that failed or are quarantined; or those of one reason, rejections too; or, with `damaged`, those whose artifacts are
    missing or changed.
    """
    total = 0
    ledger = Ledger(root)
    for stage in STAGES:
        records = ledger.read(stage, prints[stage])
        if damaged:
            units = {unit for unit, _ in damaged_units(root, stage, records)}
        elif reason:
            units = {r.unit for r in records.values() if r.reason == reason}
        else:
            units = {r.unit for r in records.values() if r.outcome in (Outcome.FAILED, Outcome.QUARANTINED)}
        ledger.forget(stage, prints[stage], units)
        total += len(units)
    return total
