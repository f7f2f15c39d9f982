"""The books of a run: what the ledger says, as tables, as a count, and as the list of everything ever given to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.config import RunConfig
from pipeline.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, list_sources
from pipeline.state import Generated, Prepared, source_verdict
from schemas.outcomes import Outcome, Verdict
from schemas.sample import INDEX_NAME, read_index
from schemas.units import Clip, PortraitUnit, SourceFile


@dataclass
class Summary:
    """How a run stands when it returns: outcome -> count."""

    sources: dict[str, int] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    shards: Path | None = None


def list_run(root: Path, config: RunConfig, base: Path) -> tuple[list[SourceFile], list[SourceFile]]:
    """All clip and portrait files ever listed for this run: a file that has gone since is still a unit with an outcome."""
    known = tables.load(root, "sources")
    listed = {"clip": list_sources(config.clips, CLIP_SUFFIXES, base)}
    listed["portrait"] = list_sources(config.portraits, IMAGE_SUFFIXES, base) if config.portraits else []
    both = []
    for kind, sources in listed.items():
        present = {s.id for s in sources}
        gone = [_source_of(r) for r in known if r["kind"] == kind and r["source"] not in present]
        both.append(sorted([*sources, *gone], key=lambda s: s.uri))
    if not known:
        rows = [_source_row(s, k) for k, sources in zip(listed, both, strict=True) for s in sources]
        tables.save(root, "sources", rows, tables.SOURCES)
    return both[0], both[1]


def _source_of(r: dict[str, Any]) -> SourceFile:
    return SourceFile(id=r["source"], uri=r["uri"], identity=r["identity"], licence=r["licence"], consent=r["consent"])


def _source_row(source: SourceFile, kind: str, **more: Any) -> dict[str, Any]:
    about = {k: v for k, v in asdict(source).items() if k != "id"}
    return {"source": source.id, "kind": kind, **about, "outcome": "", "reason": "", **more}


def save_prepared(root: Path, state: Prepared) -> None:
    rows = []
    for kind, sources, records in (("clip", state.clip_sources, state.ingest), ("portrait", state.image_sources, state.portraits)):
        for source in sources:
            outcome, reason = source_verdict(source, state)
            data = records[source.id].data if source.id in records else {}
            measured = {k: data[k] for k in ("content", "frames", "fps", "width", "height", "duration_s", "has_audio") if k in data}
            rows.append(_source_row(source, kind, **measured) | {"outcome": outcome, "reason": reason})
    tables.save(root, "sources", rows, tables.SOURCES)
    _save_units(root, "clips", state.clips, state.clip_verdicts, tables.CLIPS)
    _save_units(root, "portraits", state.stills, state.still_verdicts, tables.PORTRAITS)
    save_outcomes(root, state, None)


def _save_units(root: Path, name: str, units: Sequence[Clip | PortraitUnit], verdicts: dict[str, Verdict], schema: pa.Schema) -> None:
    rows = []
    for unit in units:
        verdict = verdicts[unit.id]
        origin = {"source": unit.source.id, "identity": unit.source.identity, "uri": unit.source.uri}
        ending = {"outcome": Outcome.DONE if verdict.accepted else Outcome.REJECTED, "reason": verdict.reason}
        rows.append({**asdict(unit), **origin, **ending, name[:-1]: unit.id})
    tables.save(root, name, rows, schema)


def save_outcomes(root: Path, prepared: Prepared, generated: Generated | None) -> None:
    rows = []
    stages = [prepared.ingest, prepared.faces, prepared.portraits]
    stages += [generated.motion, generated.reenact, generated.regions] if generated else []
    for records in stages:
        for r in records.values():
            fields = {n: getattr(r, n) for n in tables.OUTCOMES.names}
            if r.unit in prepared.duplicates and r.outcome == Outcome.DONE:
                fields |= {"outcome": Outcome.REJECTED, "reason": "duplicate", "message": f"same content as {prepared.duplicates[r.unit]}"}
            rows.append(fields)
    verdicts = [(c.id, "clip", c.shot, c.source.uri, "gates", prepared.clip_verdicts[c.id]) for c in prepared.clips]
    verdicts += [(p.id, "portrait", p.source.id, p.source.uri, "gates", prepared.still_verdicts[p.id]) for p in prepared.stills]
    if generated:
        planned = {p.clip for p in generated.planned}
        lonely = [c for c in prepared.accepted_clips if c.id not in planned]
        rows += [_verdict_row(c.id, "clip", c.shot, c.source.uri, "plan", Outcome.REJECTED, "no_partner") for c in lonely]
        uri = {c.id: c.source.uri for c in prepared.clips}
        measured = [p for p in generated.live() if p.pair in generated.verdicts]
        verdicts += [(p.pair, "pair", p.clip, uri[p.clip], "quality", generated.verdicts[p.pair]) for p in measured]
    for unit, kind, parent, source_uri, stage, verdict in verdicts:
        outcome = Outcome.DONE if verdict.accepted else Outcome.REJECTED
        rows.append(_verdict_row(unit, kind, parent, source_uri, stage, outcome, verdict.reason))
    tables.save(root, "outcomes", rows, tables.OUTCOMES)


def _verdict_row(unit: str, kind: str, parent: str, uri: str, stage: str, outcome: str, reason: str) -> dict[str, Any]:
    about = {"unit": unit, "kind": kind, "parent": parent, "source_uri": uri, "stage": stage}
    return {**about, "outcome": outcome, "reason": reason, "message": "", "attempts": 1, "seconds": 0.0}


def summarise(root: Path, config: RunConfig, prepared: Prepared, generated: Generated | None) -> Summary:
    def count(outcomes: Sequence[str]) -> dict[str, int]:
        return {o or "left": list(outcomes).count(o) for o in sorted(set(outcomes))}

    sources = [source_verdict(s, prepared) for s in (*prepared.clip_sources, *prepared.image_sources)]
    clips = [Outcome.DONE if v.accepted else Outcome.REJECTED for v in prepared.clip_verdicts.values()]
    pairs = [generated.verdict(p) for p in generated.live()] if generated else []
    reasons = [r for _, r in (*sources, *pairs) if r]
    folder = root / "shards" / config.set_name
    packed = (folder / INDEX_NAME).is_file()
    return Summary(
        sources=count([o for o, _ in sources]),
        clips=count(clips),
        pairs=count([o for o, _ in pairs]),
        reasons={r: reasons.count(r) for r in sorted(set(reasons))},
        samples=read_index(folder).num_rows if packed else 0,
        shards=folder if packed else None,
    )
