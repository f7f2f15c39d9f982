"""Replay: one unit through one stage again, in the foreground, with the full error. Nothing of it is recorded."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from pipeline import tables
from pipeline.config import RunConfig
from pipeline.ledger import STAGES, Ledger, Record
from pipeline.storage import read_run_file
from pipeline.worker import build_stage
from schemas.config import parse_config
from schemas.outcomes import Outcome, Rejection
from schemas.store import Place, Store, open_store
from schemas.units import Clip, Driving, Pair, Performance, PortraitUnit, Shot, SourceFile
from stages.fetched import let_go
from stages.outputs import Outputs
from stages.portraits import portrait_of_clip

_CHILDREN: dict[str, type] = {"ingest": Shot, "faces": Clip, "portraits": PortraitUnit, "reenact": Driving}


@dataclass(frozen=True)
class Replay:
    """A unit, found in a run, and the stage to take it through."""

    root: Store
    config: RunConfig
    stage: str
    spec: Any

    def run(self) -> dict[str, Any]:
        """What the stage measures and what comes of the unit, or whatever it raises. Its files are taken away again."""
        out = Outputs(self.root, f"replay-{uuid.uuid4().hex[:8]}", self.config.limits.unit_s)
        try:
            data, children = build_stage(self.stage, self.config)(self.spec, out)
        except Rejection as e:
            raise Rejection(e.reason, out.worded(str(e)), e.scores) from e
        except Exception as e:
            if (worded := out.worded(str(e))) != str(e):
                e.add_note(worded)
            raise
        finally:
            out.discard()
            out.close()
            let_go()
        made = {"files": dict(out.digests), "children": [asdict(c) if is_dataclass(c) else c for c in children]}  # type: ignore[arg-type]
        return {"stage": self.stage, "unit": self.spec.id, "data": data, **made}


def find(place: Place, unit: str, stage: str = "") -> Replay:
    """A unit as a stage took it; by default the stage that it did not get through, else the first that has a record of it.

    Raises:
        ValueError: no run, no such unit in it, or none that this stage takes.
    """
    root = open_store(place)
    frozen = read_run_file(root)
    config, ledger = parse_config(RunConfig, frozen["config"]), Ledger(root)
    records = {name: ledger.read(name, frozen["fingerprints"].get(name, "")) for name in STAGES}
    name = stage or _stage_of(unit, records, root)
    if name not in STAGES:
        raise ValueError(f"--stage {name}: one of {', '.join(STAGES)}")
    return Replay(root, config, name, _spec(root, unit, name, records))


def _stage_of(unit: str, records: dict[str, dict[str, Record]], root: Store) -> str:
    having = [name for name in STAGES if unit in records[name]]
    if not having:
        raise ValueError(f"{root}: no unit {unit}; tables/outcomes.parquet lists the units")
    return next((name for name in having if records[name][unit].outcome != Outcome.DONE), having[0])


def _spec(root: Store, unit: str, stage: str, records: dict[str, dict[str, Record]]) -> Any:
    """The unit as the stage took it, from what was recorded of it and of those that it came of."""
    found: dict[str, dict[str, Any]] = {
        name: {c.id: c for r in records[name].values() for c in _units(cls, r.children)} for name, cls in _CHILDREN.items()
    }
    clips: dict[str, Clip] = found["faces"]
    spec: Any = None
    if stage in ("ingest", "portraits"):
        listed = {r["source"]: r for r in tables.load(root, "sources")}
        uri = records[stage][unit].source_uri if unit in records[stage] else listed.get(unit, {}).get("uri")
        spec = SourceFile(id=unit, uri=uri, identity="", licence="", consent="") if uri else None
    elif stage == "faces":
        spec = found["ingest"].get(unit)
    elif stage == "identity":
        spec = clips.get(unit) or found["portraits"].get(unit)
    elif stage == "motion":
        spec = Performance(id=unit, clip=clips[unit], portraits=[]) if unit in clips else None
    elif stage == "reenact":
        planned = next((p for p in tables.load_pairs(root) if p.pair == unit), None)
        portraits = found["portraits"] | {p.id: p for p in map(portrait_of_clip, clips.values())}
        if planned is not None and planned.clip in clips and planned.portrait in portraits:
            folder = records["motion"][planned.clip].folder if planned.clip in records["motion"] else ""
            spec = Pair(id=unit, clip=clips[planned.clip], portrait=portraits[planned.portrait], motion_folder=folder)
    else:
        spec = found["reenact"].get(unit)
    if spec is None:
        raise ValueError(f"{root}: stage {stage} has no unit {unit}; tables/outcomes.parquet lists units by stage")
    return spec


def _units(cls: type, children: list[dict[str, Any]]) -> list[Any]:
    units: list[Any] = TypeAdapter(list[cls]).validate_python(children)  # type: ignore[valid-type]
    return units
