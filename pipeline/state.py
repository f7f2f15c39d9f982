"""The state of a run, read from its ledger: what is done, what is due, and the verdict on everything."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from pipeline import tables
from pipeline.config import RunConfig, fingerprints
from pipeline.identities import Person
from pipeline.ledger import Ledger, Record
from pipeline.linked import Linked, read_linked
from pipeline.people import Earlier, copies, likenesses, people_of, with_identities
from pipeline.plan import PlannedPair
from pipeline.worker import file_states, row
from schemas.outcomes import ACCEPTED, Outcome, Verdict
from schemas.store import Store
from schemas.units import Clip, Driving, Pair, Performance, PortraitUnit, Shot, SourceFile
from stages import gates, lineage, quality
from stages.gates import FaceGates
from stages.lineage import LineageConfig
from stages.portraits import portrait_of_clip


@dataclass
class Prepared:
    """What ingest, faces, portraits and identity have made of the sources so far. Lists are sorted by id, so order of work leaves no trace.

    Of accepted clips and stills, `source.identity` is who they turned out to be; of others, what is said of their source.
    """

    clip_sources: list[SourceFile]
    image_sources: list[SourceFile]
    ingest: dict[str, Record]
    faces: dict[str, Record]
    portraits: dict[str, Record]
    identity: dict[str, Record]
    duplicates: dict[str, str]  # source -> the source that holds the same content
    near_duplicates: dict[str, str]  # clip or still from an image file -> the one whose pictures it shows
    shots: list[Shot]
    clips: list[Clip]
    stills: list[PortraitUnit]  # from image files
    clip_stills: list[PortraitUnit]  # accepted clips' own, where the config wants them
    clip_verdicts: dict[str, Verdict]
    still_verdicts: dict[str, Verdict]  # on both kinds of stills
    people: list[Person]  # of accepted clips and stills from image files
    linked: Linked  # the same without identities, as it is kept
    since: dict[str, int]  # clip, image portrait or source -> when it was first accepted, or its content taken, by the tables
    identifies: bool  # whether there is anything to measure of who is who
    rules: LineageConfig  # of what may be used; what may not is not looked at, and what is known of it counts for nothing

    @cached_property
    def shots_of(self) -> defaultdict[str, list[str]]:
        """Source -> its shots."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for shot in self.shots:
            found[shot.source.id].append(shot.id)
        return found

    @cached_property
    def verdicts_of(self) -> defaultdict[tuple[str, str], list[Verdict]]:
        """Kind and source -> the verdicts on its clips, or on its portrait."""
        found: defaultdict[tuple[str, str], list[Verdict]] = defaultdict(list)
        for clip in self.clips:
            found["clip", clip.source.id].append(self.clip_verdicts[clip.id])
        for still in self.stills:
            found["portrait", still.source.id].append(self.still_verdicts[still.id])
        return found

    def may_use(self, source: SourceFile) -> Verdict:
        """By what the manifest says of the file."""
        return lineage.decide(source, self.rules)

    @property
    def accepted_clips(self) -> list[Clip]:
        return [c for c in self.clips if self.clip_verdicts[c.id].accepted]

    @property
    def accepted_portraits(self) -> list[PortraitUnit]:
        return [p for p in (*self.stills, *self.clip_stills) if self.still_verdicts[p.id].accepted]

    def changed(self, among: Set[str] | None = None) -> dict[str, set[str]]:
        """Stage -> sources whose file is there and is not the one in the record any more: replaced, mended, or back again.

        `among`: only these sources are looked at.
        """
        both = [
            (stage, [s for s in sources if s.id in records and (among is None or s.id in among)], records)
            for stage, sources, records in (("ingest", self.clip_sources, self.ingest), ("portraits", self.image_sources, self.portraits))
        ]
        now = file_states(s.uri for _, sources, _ in both for s in sources)
        return {stage: {s.id for s in sources if _differs(now[s.uri], records[s.id])} for stage, sources, records in both}

    def due(self) -> list[dict[str, str]]:
        """Rows that the prepare graph has yet to work on, as far as is known: who is in a clip is due when the clip is there."""
        rows = [row("ingest", s) for s in self.clip_sources if s.id not in self.ingest and self.may_use(s).accepted]
        rows += [row("faces", s) for s in self.shots if s.id not in self.faces and self.may_use(s.source).accepted]
        rows += [row("portraits", s) for s in self.image_sources if s.id not in self.portraits and self.may_use(s).accepted]
        units: tuple[Clip | PortraitUnit, ...] = (*self.clips, *self.stills)
        unseen = [u for u in units if self.identifies and u.id not in self.identity]
        return rows + [row("identity", u) for u in unseen if self.may_use(u.source).accepted]


def read_prepared(root: Store, config: RunConfig, clip_sources: Sequence[SourceFile], image_sources: Sequence[SourceFile]) -> Prepared:
    ledger, prints = Ledger(root), fingerprints(config)
    ingest, found, portraits, identity = (ledger.read(stage, prints[stage]) for stage in ("ingest", "faces", "portraits", "identity"))
    # What is said of a source is what the manifest says now, not what it said when the file was looked through.
    by_id, images_by_id = {s.id: s for s in clip_sources}, {s.id: s for s in image_sources}
    shots = [replace(s, source=by_id[r.unit]) for r in ingest.values() if r.unit in by_id for s in _units(Shot, r.children)]
    identity_rows = tables.load(root, "identities")
    since = _since(root, identity_rows)
    rules = config.lineage
    duplicates = _duplicates(clip_sources, ingest, since, rules) | _duplicates(image_sources, portraits, since, rules)
    firsts = [s for s in shots if s.source.id not in duplicates and s.id in found]
    clips = _by_id(replace(c, source=s.source) for s in firsts for c in _units(Clip, found[s.id].children))
    images = [r for r in portraits.values() if r.unit in images_by_id and r.unit not in duplicates]
    stills = _by_id(replace(p, source=images_by_id[r.unit]) for r in images for p in _units(PortraitUnit, r.children))
    clip_verdicts = {c.id: _verdict(c, config.gates, rules) for c in clips}
    still_verdicts = {p.id: _verdict(p, config.portrait_gates, rules) for p in stills}
    known, looks = Earlier.of(identity_rows), likenesses(identity)
    near_duplicates = copies([c for c in clips if clip_verdicts[c.id].accepted], looks, config.identity, since)
    near_duplicates |= copies([p for p in stills if still_verdicts[p.id].accepted], looks, config.identity, since)
    for verdicts in (clip_verdicts, still_verdicts):
        verdicts |= {u: Verdict(False, "near_duplicate") for u in verdicts.keys() & near_duplicates}
    accepted_stills = [p for p in stills if still_verdicts[p.id].accepted]
    accepted = [c for c in clips if clip_verdicts[c.id].accepted]
    people, linked = people_of(accepted, accepted_stills, looks, config.identity, known, read_linked(root))
    someone = {m for p in people for m in p.members}
    clip_verdicts |= {u: Verdict(False, "unknown_person") for u, v in clip_verdicts.items() if v.accepted and u not in someone}
    clips, stills = with_identities(clips, people), with_identities(stills, people)
    clip_stills = [portrait_of_clip(c) for c in clips if clip_verdicts[c.id].accepted] if config.portraits_from_clips else []
    return Prepared(
        clip_sources=list(clip_sources),
        image_sources=list(image_sources),
        ingest=ingest,
        faces=found,
        portraits=portraits,
        identity=identity,
        duplicates=duplicates,
        near_duplicates=near_duplicates,
        shots=_by_id(shots),
        clips=clips,
        stills=stills,
        clip_stills=clip_stills,
        clip_verdicts=clip_verdicts,
        still_verdicts=still_verdicts | {p.id: gates.decide(p.scores, config.portrait_gates) for p in clip_stills},
        people=people,
        linked=linked,
        since=since,
        identifies=config.identity.measures,
        rules=rules,
    )


def _verdict(unit: Clip | PortraitUnit, thresholds: FaceGates, rules: LineageConfig) -> Verdict:
    allowed = lineage.decide(unit.source, rules)
    return gates.decide(unit.scores, thresholds) if allowed.accepted else allowed


def _units(cls: type, children: Iterable[dict[str, Any]]) -> list[Any]:
    return TypeAdapter(list[cls]).validate_python(list(children))  # type: ignore[valid-type]


def _by_id(units: Iterable[Any]) -> list[Any]:
    """One unit per id, sorted; of two with one id, the one from the source that comes first."""
    found: dict[str, Any] = {}
    for unit in units:
        if unit.id not in found or unit.source.uri < found[unit.id].source.uri:
            found[unit.id] = unit
    return [found[i] for i in sorted(found)]


def _differs(now: dict[str, Any], record: Record) -> bool:
    return now["size_bytes"] >= 0 and any(record.data.get(k, v) != v for k, v in now.items())


def _since(root: Store, identities: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What the table of the known says: it only grows, so that whatever is moved and moved back, the same ones of copies stay."""
    if rows := tables.load(root, "known"):
        return {r["unit"]: r["since"] for r in rows}
    # An older run, which kept no such table: the others tell that they were known, and not when.
    both = [(r, r[kind]) for table, kind in (("clips", "clip"), ("portraits", "portrait")) for r in tables.load(root, table)]
    units = {unit for r, unit in both if r["outcome"] == Outcome.DONE} | {r["source"] for r, _ in both}
    return dict.fromkeys(units | {m for r in identities for m in r["members"]}, 0)


def _duplicates(
    sources: Sequence[SourceFile], records: dict[str, Record], since: Mapping[str, int], rules: LineageConfig
) -> dict[str, str]:
    """Sources whose content another one has brought: the one whose content was taken first (`since`), else the first by URI.

    So a copy that is added later never takes a clip, with its identity and licence, from the file that it was made of; unless that one
    may not be used, of which nothing would be known if the rule had been there from the start.
    """
    first: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for source in sorted(sources, key=lambda s: (not lineage.decide(s, rules).accepted, since.get(s.id, math.inf), s.uri)):
        record = records.get(source.id)
        content = record.data.get("content") if record else None
        if content and first.setdefault(content, source.id) != source.id:
            duplicates[source.id] = first[content]
    return duplicates


def source_verdict(source: SourceFile, kind: str, state: Prepared) -> tuple[str, str]:
    """Outcome and reason of a source file as a whole: done when one clip or portrait of it is accepted, else what it failed furthest on."""
    if not (allowed := state.may_use(source)).accepted:
        return Outcome.REJECTED, allowed.reason
    first = (state.ingest if kind == "clip" else state.portraits).get(source.id)
    if first is None:
        return "", ""
    if first.outcome != Outcome.DONE:
        return first.outcome, first.reason
    if source.id in state.duplicates:
        return Outcome.REJECTED, "duplicate"
    shots = state.shots_of[source.id] if kind == "clip" else []
    verdicts = state.verdicts_of[kind, source.id]
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
    split: dict[str, str]  # of each identity

    def pair(self, planned: PlannedPair) -> Pair:
        """The unit, with the clip's motion where that is made."""
        motion = self.motion.get(planned.clip)
        folder = motion.folder if motion and motion.outcome == Outcome.DONE else ""
        return Pair(id=planned.pair, clip=self.clips[planned.clip], portrait=self.portraits[planned.portrait], motion_folder=folder)

    def is_live(self, planned: PlannedPair) -> bool:
        """Whether clip and portrait are accepted now, and of two people, both in the pair's split. The plan only grows; what it holds may
        rest.
        """
        clip, portrait = self.clips.get(planned.clip), self.portraits.get(planned.portrait)
        if clip is None or portrait is None or clip.source.identity == portrait.source.identity:
            return False
        return all(self.split.get(u.source.identity, planned.split) == planned.split for u in (clip, portrait))

    def people(self, planned: PlannedPair) -> dict[str, str]:
        """Who performs and who appears, by what is known now; by the plan where one of them has gone."""
        if not self.is_live(planned):
            return {"performer": planned.performer, "appearance": planned.appearance}
        clip, portrait = self.clips[planned.clip], self.portraits[planned.portrait]
        return {"performer": clip.source.identity, "appearance": portrait.source.identity}

    def live(self) -> list[PlannedPair]:
        return [p for p in self.planned if self.is_live(p)]

    def due(self) -> list[dict[str, str]]:
        """Rows that the generate graph has yet to work on; pairs whose motion could not be made are not among them."""
        return [row(stage, unit) for stage, unit in self._due()]

    def ahead(self) -> int:
        """How many units the rows of `due` come to in the end, if none is rejected: a pair is rendered, then measured."""
        counts = {"motion": 1, "reenact": 2, "regions": 1}
        return sum(counts[stage] + (2 * len(unit.portraits) if stage == "motion" else 0) for stage, unit in self._due())

    def _due(self) -> list[tuple[str, Any]]:
        """Stage and unit; a pair whose clip has no motion yet comes with the clip."""
        units: list[tuple[str, Any]] = []
        waiting: defaultdict[str, list[PortraitUnit]] = defaultdict(list)
        for planned in self.live():
            if planned.pair not in self.reenact:
                pair = self.pair(planned)
                if planned.clip not in self.motion:
                    waiting[planned.clip].append(pair.portrait)
                elif pair.motion_folder:
                    units.append(("reenact", pair))
            elif planned.pair not in self.regions and self.reenact[planned.pair].outcome == Outcome.DONE:
                units += [("regions", d) for d in _units(Driving, self.reenact[planned.pair].children)]
        return units + [("motion", Performance(id=c, clip=self.clips[c], portraits=waiting[c])) for c in sorted(waiting)]

    def verdict(self, planned: PlannedPair) -> tuple[str, str]:
        """Outcome and reason of a pair as a whole; empty while it is under way."""
        if not self.is_live(planned):
            return Outcome.REJECTED, "partner_gone"
        for record in (self.motion.get(planned.clip), self.reenact.get(planned.pair), self.regions.get(planned.pair)):
            if record is None:
                return "", ""
            if record.outcome != Outcome.DONE:
                return record.outcome, record.reason
        verdict = self.verdicts[planned.pair]
        return (Outcome.DONE, "") if verdict.accepted else (Outcome.REJECTED, verdict.reason)


def read_generated(root: Store, config: RunConfig, prepared: Prepared, planned: Sequence[PlannedPair]) -> Generated:
    ledger, prints = Ledger(root), fingerprints(config)
    motion, reenact, regions = (ledger.read(stage, prints[stage]) for stage in ("motion", "reenact", "regions"))
    ids = {p.pair for p in planned}
    done = {u: r for u, r in regions.items() if u in ids and r.outcome == Outcome.DONE}
    anything = config.reenactor.allow_untrained
    return Generated(
        planned=list(planned),
        clips={c.id: c for c in prepared.accepted_clips},
        portraits={p.id: p for p in prepared.accepted_portraits},
        motion=motion,
        reenact=reenact,
        regions=regions,
        verdicts={u: ACCEPTED if anything else quality.decide(r.data, config.quality) for u, r in done.items()},
        split={r["identity"]: r["split"] for r in tables.load(root, "identities")},
    )
