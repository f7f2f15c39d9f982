"""A worker: takes rows, runs the stages it was made for, records every outcome, passes on the rows that come of it.

The one place where errors, time limits and deaths become outcomes. Stages know nothing of it.
"""

from __future__ import annotations

import errno
import faulthandler
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from pipeline.config import RunConfig, fingerprints
from pipeline.engine import build_engine, frame_seconds
from pipeline.ledger import LedgerWriter, Record
from schemas.files import StorageError, own_storage
from schemas.objects import is_object, object_state, object_states
from schemas.outcomes import Outcome, Rejection
from schemas.store import Store, open_store
from schemas.units import Clip, Driving, Pair, Performance, PortraitUnit, Shot, SourceFile
from stages.outputs import Outputs

ROW = pa.schema([("stage", pa.string()), ("unit", pa.string()), ("spec", pa.string())])
_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOBUFS", "ENOLCK", "ENOMEM", "ESTALE", "ETIMEDOUT", "EREMOTEIO"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN"),
    )
    if hasattr(errno, name)
)
_NO_FILE = {"size_bytes": -1, "mtime_ns": -1}
_PAUSE_S = 1.0  # before a transient error is tried again; each time four times as long
OUTCOME = "outcome"  # the stage of a row that only tells the driver how a unit ended
SUSPECT = "suspect"  # of a row whose spec is another row: a unit whose worker died under it, to be run again alone


@dataclass(frozen=True)
class StageInfo:
    """What the executor must know of a stage: what a row's `spec` holds, what a unit is called, who takes its children."""

    spec: Any  # a dataclass of schemas.units, or a union of some
    kind: str  # "" when the spec tells
    next_stage: str  # "" when nothing follows in the same graph
    recorded: bool = True  # whether the record names the children; which pairs wait for a clip's motion, the plan says at each time


STAGES: dict[str, StageInfo] = {
    "ingest": StageInfo(SourceFile, "source", "faces"),
    "faces": StageInfo(Shot, "shot", ""),
    "portraits": StageInfo(SourceFile, "portrait", ""),
    "identity": StageInfo(Clip | PortraitUnit, "", ""),
    "motion": StageInfo(Performance, "clip", "reenact", recorded=False),
    "reenact": StageInfo(Pair, "pair", "regions"),
    "regions": StageInfo(Driving, "pair", ""),
}


def row(stage: str, spec: Any) -> dict[str, str]:
    return {"stage": stage, "unit": spec.id, "spec": json.dumps(asdict(spec), sort_keys=True, separators=(",", ":"))}


def read_spec(cls: Any, text: str) -> Any:
    return TypeAdapter(cls).validate_json(text)


def file_state(uri: str) -> dict[str, int | str]:
    """Size and time of a file as its record keeps them; -1 where there is none. What differs from the record is due again."""
    try:
        if is_object(uri):
            return object_state(uri)._asdict()
        stat = Path(uri).stat()
    except (OSError, ValueError):  # ValueError: a manifest's name with a NUL in it
        return dict(_NO_FILE)
    return {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def file_states(uris: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """`file_state` of each, of many objects with few requests. Raises StorageError when their store fails."""
    every = set(uris)
    objects = object_states(filter(is_object, every))
    return {u: file_state(u) if not is_object(u) else objects[u]._asdict() if u in objects else dict(_NO_FILE) for u in every}


def build_stage(name: str, config: RunConfig) -> Callable[..., tuple[dict[str, Any], list[Any]]]:
    """The stage's object; imports what it needs and no more."""
    size_px = config.video.size_px
    if name == "ingest":
        from stages.ingest import Ingest

        return Ingest(config.ingest)
    if name == "faces":
        from stages.faces import Faces

        return Faces(config.faces, config.video.fps, size_px)
    if name == "portraits":
        from stages.portraits import Portraits

        return Portraits(config.faces, size_px)
    if name == "identity":
        from stages.identity import Identity

        return Identity(config.identity)
    if name == "regions":
        from stages.expression import Expressions
        from stages.identity import open_network
        from stages.regions import RegionsStage

        controls = config.controls
        expressions = Expressions(Path(controls.expressions), controls.sha256) if controls.expressions else None
        return RegionsStage(expressions, open_network(config.identity))
    from stages.reenact import MotionStage, Reenact

    engine = build_engine(config)
    return MotionStage(engine) if name == "motion" else Reenact(engine, fingerprints(config)["reenact"])


class StageUnavailable(RuntimeError):
    """A machine cannot run a stage at all: a network or a library does not load. No unit is to blame, and the run stops."""


class StageWorker:
    """For `Dataset.map_batches`: rows in, rows out (ROW). Rows of other stages pass through untouched.

    Lets out StorageError and StageUnavailable alone: the unit in hand is left open and due, and what the whole run suffers from ends it.

    Args:
        session: of the driver; an attempt that is open in the same session is that of a worker which died.
        alone: no other unit is in this process, so that a suspect may be run.
    """

    def __init__(self, root: str, config: RunConfig, names: tuple[str, ...], session: str, *, alone: bool = False) -> None:
        self._root, self._config, self._names, self._session, self._alone = open_store(root), config, names, session, alone
        self._fingerprints = fingerprints(config)
        self._stages: dict[str, Callable[..., tuple[dict[str, Any], list[Any]]]] = {}
        self._writers = {name: LedgerWriter(self._root, name) for name in names}

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows: list[dict[str, str]] = []
        with own_storage(self._root.here):
            for item in batch.to_pylist():
                if item["stage"] in self._names:
                    rows += self._run(item["stage"], read_spec(STAGES[item["stage"]].spec, item["spec"]))
                else:
                    rows.append(item)
            for writer in self._writers.values():
                writer.flush()
        return pa.Table.from_pylist(rows, schema=ROW)

    def _run(self, stage: str, spec: Any) -> list[dict[str, str]]:
        """One unit to its outcome: the rows of its children, and one that tells the driver."""
        info, writer = STAGES[stage], self._writers[stage]
        seen = file_state(spec.uri) if isinstance(spec, SourceFile) else {}
        died = writer.begin(spec.id, self._session) > 1
        if died and not self._alone:
            writer.withdraw(spec.id)
            return [{"stage": SUSPECT, "unit": spec.id, "spec": json.dumps(row(stage, spec))}]
        started = time.monotonic()
        fields, children = self._attempt(stage, spec)
        record = Record(
            **_names(stage, spec, self._fingerprints[stage]),
            seconds=round(time.monotonic() - started, 3),
            children=[asdict(c) for c in children] if info.recorded else [],
            **{**fields, "data": {**fields.get("data", {}), **seen}},
        )
        writer.add(record)
        return [_told(record), *(row(info.next_stage, child) for child in children if info.next_stage)]

    def _attempt(self, stage: str, spec: Any) -> tuple[dict[str, Any], list[Any]]:
        """Runs the stage, again after an error while attempts are left; (fields of the record, children)."""
        limits, seconds = self._config.limits, unit_seconds(stage, spec, self._config)
        fields: dict[str, Any] = {}
        for attempt in itertools.count(1):
            folder = f"artifacts/{stage}/{spec.id[:2]}/{spec.id}/{self._fingerprints[stage][:8]}-{uuid.uuid4().hex[:8]}"
            out = Outputs(self._root, folder, seconds)
            # A Python timer cannot fire while native code holds the interpreter; this one ends the process.
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
            try:
                with own_storage(self._root.here), bounded_memory(limits.memory_gb):
                    data, children = self._stage(stage)(spec, out)
                    # How fast its files are taken in is not the unit's doing: that has a time of its own.
                    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
                    out.flush()
                return {
                    "outcome": Outcome.DONE,
                    "data": data,
                    "folder": folder,
                    "digests": dict(out.digests),
                    "attempts": attempt,
                }, children
            except (StorageError, StageUnavailable):
                with suppress(StorageError):  # the sweep will see to it
                    out.discard()
                raise
            except Rejection as e:
                fields = {"outcome": Outcome.REJECTED, "reason": e.reason, "message": str(e), "data": dict(e.scores), "attempts": attempt}
                out.discard()
                break
            except subprocess.TimeoutExpired as e:
                fields = {"outcome": Outcome.FAILED, "reason": "timeout", "message": str(e), "attempts": attempt}
            except MemoryError:
                message = f"took more than limits.memory_gb beyond what its worker had ({memory_gb(limits.memory_gb):.1f} GB)"
                fields = {"outcome": Outcome.FAILED, "reason": "out_of_memory", "message": message, "attempts": attempt}
            except Exception as e:
                where = traceback.extract_tb(e.__traceback__)[-1]
                message = f"{type(e).__name__}: {e} ({Path(where.filename).name}:{where.lineno})"
                reason = "transient" if _is_transient(e) else "error"
                fields = {"outcome": Outcome.FAILED, "reason": reason, "message": message, "attempts": attempt}
            finally:
                faulthandler.cancel_dump_traceback_later()
                out.close()
            out.discard()
            passes = fields["reason"] == "transient"
            if attempt >= (limits.transient_attempts if passes else limits.attempts):
                break
            if passes:
                time.sleep(min(_PAUSE_S * 4 ** (attempt - 1), 60.0))
        return {**fields, "message": out.worded(fields["message"])}, []

    def _stage(self, name: str) -> Callable[..., tuple[dict[str, Any], list[Any]]]:
        if name not in self._stages:
            try:
                self._stages[name] = build_stage(name, self._config)
            except Exception as e:
                why = "limits.memory_gb does not do" if isinstance(e, MemoryError) else f"{type(e).__name__}: {e}"
                raise StageUnavailable(f"{socket.gethostname()}: stage {name} cannot begin its work there: {why}") from e
        return self._stages[name]


def _is_transient(error: Exception) -> bool:
    """Whether the machine or its network failed, not the file: what may be well in a minute. Decoders use the same numbers otherwise."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT and not type(error).__module__.startswith("av.")


def run_alone(root: str, config: RunConfig, item: dict[str, str], session: str, worker: type[StageWorker]) -> list[dict[str, str]]:
    """One row by itself, in a process of its own: how it ended, then its children."""
    batch = pa.Table.from_pylist([item], schema=ROW)
    told: list[dict[str, str]] = worker(root, config, (item["stage"],), session, alone=True)(batch).to_pylist()
    return told


def quarantine(root: Store, config: RunConfig, item: dict[str, str], session: str, ended: list[float], died: str) -> dict[str, str]:
    """Records a unit that has killed or hung its worker, alone; the row that tells so. `ended`: when the attempts alone did."""
    stage, spec = item["stage"], read_spec(STAGES[item["stage"]].spec, item["spec"])
    writer = LedgerWriter(root, stage)
    began = writer.open_since(spec.id, session)
    took = [end - begin for begin, end in zip(began[-len(ended) :], ended, strict=False)]
    seconds = unit_seconds(stage, spec, config)
    hung = bool(took) and min(took) >= seconds
    what = f"took longer than its {seconds:.0f} s (limits.unit_s)" if hung else f"killed its worker ({died})"
    times = ", ".join(f"{datetime.fromtimestamp(t):%Y-%m-%d %H:%M:%S}" for t in began)
    record = Record(
        **_names(stage, spec, fingerprints(config)[stage]),
        outcome=Outcome.QUARANTINED,
        reason="hung" if hung else "worker_died",
        message=f"{what} in {stage}, at last alone: {times}; see it happen: crosspair replay {root} {spec.id} --stage {stage}",
        attempts=len(began),
        seconds=round(sum(took), 3),
        data=file_state(spec.uri) if isinstance(spec, SourceFile) else {},
    )
    writer.add(record)
    writer.flush()
    return _told(record)


def unit_seconds(stage: str, spec: Any, config: RunConfig) -> float:
    """What a unit may take: frames that are drawn by large networks on a CPU are counted."""
    frames = spec.clip.frames if isinstance(spec, (Performance, Pair)) else 0
    return config.limits.unit_s + frames * frame_seconds(stage, config)


@contextmanager
def bounded_memory(limit_gb: float) -> Iterator[None]:
    """Allocations that take the process more than `limit_gb` (0: half of the machine's memory) beyond where it is now fail."""
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").is_file() else []
    data_kb = next((int(line.split()[1]) for line in lines if line.startswith("VmData")), None)
    if data_kb is None:  # not Linux: the limit cannot be set
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = (data_kb << 10) + int(memory_gb(limit_gb) * 1e9)
    if before[1] != resource.RLIM_INFINITY:
        allowed = min(allowed, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def memory_gb(limit_gb: float) -> float:
    return limit_gb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e9


def _told(record: Record) -> dict[str, str]:
    """The row that tells the driver how a unit ended."""
    return {"stage": OUTCOME, "unit": record.unit, "spec": json.dumps([record.stage, record.outcome, record.reason])}


def _names(stage: str, spec: Any, fingerprint: str) -> dict[str, Any]:
    """The fields of a record that say what it is about."""
    return {
        "stage": stage,
        "unit": spec.id,
        "kind": STAGES[stage].kind or ("clip" if isinstance(spec, Clip) else "portrait"),
        "parent": _parent(spec),
        "source_uri": _source_uri(spec),
        "fingerprint": fingerprint,
    }


def _parent(spec: Any) -> str:
    match spec:
        case Shot():
            return spec.source.id
        case Clip():
            return spec.shot
        case PortraitUnit():
            return spec.source.id
        case Performance():
            return spec.clip.shot
        case Pair():
            return spec.clip.id
        case Driving():
            return spec.pair.clip.id
    return ""


def _source_uri(spec: Any) -> str:
    match spec:
        case SourceFile():
            return spec.uri
        case Shot() | Clip() | PortraitUnit():
            return spec.source.uri
        case Performance() | Pair():
            return spec.clip.source.uri
        case Driving():
            return spec.pair.clip.source.uri
    return ""
