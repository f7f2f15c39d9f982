"""The state of a run, read from its ledger: what is done, what is due, and the verdict on everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.config import RunConfig, fingerprints
from pipeline.ledger import Ledger, Record
from pipeline.plan import PlannedPair
from pipeline.worker import row
from schemas.outcomes import Outcome, Verdict
from schemas.units import Clip, Driving, Pair, PortraitUnit, Shot, SourceFile
from stages import faces, quality
from stages.portraits import portrait_of_clip


@dataclass
class Prepared:
    """What ingest, faces and portraits have made of the sources so far. Lists are sorted by id, so order of work leaves no trace."""

    clip_sources: list[SourceFile]
    image_sources: list[SourceFile]
    ingest: dict[str, Record]
    faces: dict[str, Record]
    portraits: dict[str, Record]
    duplicates: dict[str, str]  # source -> the source that holds the same content
    shots: list[Shot]
    clips: list[Clip]
    stills: list[PortraitUnit]  # from image files
    clip_verdicts: dict[str, Verdict]
    still_verdicts: dict[str, Verdict]

    @cached_property
    def shots_of(self) -> defaultdict[str, list[str]]:
        """Source -> its shots."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for shot in self.shots:
            found[shot.source.id].append(shot.id)
        return found

    @cached_property
    def verdicts_of(self) -> defaultdict[str, list[Verdict]]:
        """Source -> the verdicts on its clips and portraits."""
        found: defaultdict[str, list[Verdict]] = defaultdict(list)
        for clip in self.clips:
            found[clip.source.id].append(self.clip_verdicts[clip.id])
        for still in self.stills:
            found[still.source.id].append(self.still_verdicts[still.id])
        return found

    @property
    def accepted_clips(self) -> list[Clip]:
        return [c for c in self.clips if self.clip_verdicts[c.id].accepted]

    def accepted_portraits(self, config: RunConfig) -> list[PortraitUnit]:
        stills = self.stills + ([portrait_of_clip(c) for c in self.accepted_clips] if config.portraits_from_clips else [])
        return [p for p in stills if faces.decide(p.scores, config.portrait_gates).accepted]

    def due(self) -> list[dict[str, str]]:
        """Rows that the prepare graph has yet to work on."""
        rows = [row("ingest", s) for s in self.clip_sources if s.id not in self.ingest]
        rows += [row("faces", s) for s in self.shots if s.id not in self.faces]
        return rows + [row("portraits", s) for s in self.image_sources if s.id not in self.portraits]


def read_prepared(root: Path, config: RunConfig, clip_sources: Sequence[SourceFile], image_sources: Sequence[SourceFile]) -> Prepared:
    ledger, prints = Ledger(root), fingerprints(config)
    ingest, found, portraits = (ledger.read(stage, prints[stage]) for stage in ("ingest", "faces", "portraits"))
    ids = {s.id for s in clip_sources}
    shots = [s for r in ingest.values() if r.unit in ids for s in _units(Shot, r.children)]
    duplicates = _duplicates(clip_sources, ingest)
    firsts = [s for s in shots if s.source.id not in duplicates]
    clips = _by_id(c for s in firsts if s.id in found for c in _units(Clip, found[s.id].children))
    wanted = {s.id for s in image_sources}
    stills = _by_id(p for r in portraits.values() if r.unit in wanted for p in _units(PortraitUnit, r.children))
    return Prepared(
        clip_sources=list(clip_sources),
        image_sources=list(image_sources),
        ingest=ingest,
        faces=found,
        portraits=portraits,
        duplicates={**duplicates, **_duplicates(image_sources, portraits)},
        shots=_by_id(shots),
        clips=clips,
        stills=stills,
        clip_verdicts={c.id: faces.decide(c.scores, config.gates) for c in clips},
        still_verdicts={p.id: faces.decide(p.scores, config.portrait_gates) for p in stills},
    )


def _units(cls: type, children: Iterable[dict[str, Any]]) -> list[Any]:
    return TypeAdapter(list[cls]).validate_python(list(children))  # type: ignore[valid-type]


def _by_id(units: Iterable[Any]) -> list[Any]:
    """One unit per id, sorted; of two with one id, the one from the source that comes first."""
    found: dict[str, Any] = {}
    for unit in units:
        if unit.id not in found or unit.source.uri < found[unit.id].source.uri:
            found[unit.id] = unit
    return [found[i] for i in sorted(found)]


def _duplicates(sources: Sequence[SourceFile], records: dict[str, Record]) -> dict[str, str]:
    """Sources whose content an earlier one (by URI) has already brought."""
    first: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for source in sorted(sources, key=lambda s: s.uri):
        record = records.get(source.id)
        content = record.data.get("content") if record else None
        if content and first.setdefault(content, source.id) != source.id:
            duplicates[source.id] = first[content]
    return duplicates


def source_verdict(source: SourceFile, state: Prepared) -> tuple[str, str]:
    """Outcome and reason of a source file as a whole: done when one clip or portrait of it is accepted, else what it failed furthest on."""
    first = state.ingest.get(source.id) or state.portraits.get(source.id)
    if first is None:
        return "", ""
    if first.outcome != Outcome.DONE:
        return first.outcome, first.reason
    if source.id in state.duplicates:
        return Outcome.REJECTED, "duplicate"
    shots = state.shots_of[source.id]
    verdicts = state.verdicts_of[source.id]
    if any(v.accepted for v in verdicts):
        return Outcome.DONE, ""
    if verdicts:
        return Outcome.REJECTED, verdicts[0].reason
    records = [state.faces[s] for s in shots if s in state.faces]
    if len(records) < len(shots):
        return "", ""
    furthest = ("lost_face", "no_face", "too_short")
    worst = min(records, key=lambda r: (r.outcome == Outcome.REJECTED, furthest.index(r.reason) if r.reason in furthest else -1))
    return worst.outcome, worst.reason


@dataclass
class Generated:
    """What motion, reenact and regions have made of the planned pairs so far."""

    planned: list[PlannedPair]
    clips: dict[str, Clip]
    portraits: dict[str, PortraitUnit]
    motion: dict[str, Record]
    reenact: dict[str, Record]
    regions: dict[str, Record]
    verdicts: dict[str, Verdict]  # of pairs that are measured

    def pair(self, planned: PlannedPair) -> Pair:
        """The unit, with the clip's motion where that is made."""
        motion = self.motion.get(planned.clip)
        folder = motion.folder if motion and motion.outcome == Outcome.DONE else ""
        return Pair(id=planned.pair, clip=self.clips[planned.clip], portrait=self.portraits[planned.portrait], motion_folder=folder)

    def live(self) -> list[PlannedPair]:
        """Pairs whose clip and portrait are accepted now; a stricter gate leaves pairs in the plan that are none at present."""
        return [p for p in self.planned if p.clip in self.clips and p.portrait in self.portraits]

    def due_motion(self) -> list[dict[str, str]]:
        clips = {p.clip for p in self.live() if p.pair not in self.reenact}
        return [row("motion", self.clips[c]) for c in sorted(clips) if c not in self.motion]

    def due(self) -> list[dict[str, str]]:
        """Rows that the generate graph has yet to work on; pairs whose motion could not be made are not among them."""
        rows = []
        for planned in self.live():
            if planned.pair not in self.reenact:
                pair = self.pair(planned)
                rows += [row("reenact", pair)] if pair.motion_folder else []
            elif planned.pair not in self.regions and self.reenact[planned.pair].outcome == Outcome.DONE:
                rows += [row("regions", d) for d in _units(Driving, self.reenact[planned.pair].children)]
        return rows

    def verdict(self, planned: PlannedPair) -> tuple[str, str]:
        """Outcome and reason of a pair as a whole; empty while it is under way."""
        if planned.clip not in self.clips or planned.portrait not in self.portraits:
            return "", ""
        for record in (self.motion.get(planned.clip), self.reenact.get(planned.pair), self.regions.get(planned.pair)):
            if record is None:
                return "", ""
            if record.outcome != Outcome.DONE:
                return record.outcome, record.reason
        verdict = self.verdicts[planned.pair]
        return (Outcome.DONE, "") if verdict.accepted else (Outcome.REJECTED, verdict.reason)


def read_generated(root: Path, config: RunConfig, prepared: Prepared, planned: Sequence[PlannedPair]) -> Generated:
    ledger, prints = Ledger(root), fingerprints(config)
    motion, reenact, regions = (ledger.read(stage, prints[stage]) for stage in ("motion", "reenact", "regions"))
    ids = {p.pair for p in planned}
    done = {u: r for u, r in regions.items() if u in ids and r.outcome == Outcome.DONE}
    return Generated(
        planned=list(planned),
        clips={c.id: c for c in prepared.accepted_clips},
        portraits={p.id: p for p in prepared.accepted_portraits(config)},
        motion=motion,
        reenact=reenact,
        regions=regions,
        verdicts={u: quality.decide(r.data, config.quality) for u, r in done.items()},
    )
