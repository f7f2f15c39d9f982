"""The books of a run: what the ledger says, as tables, as a count, and as the list of everything ever given to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import tables
from pipeline.added import sources_of
from pipeline.config import RunConfig
from pipeline.linked import write_linked
from pipeline.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, Listing, listing, says_nothing
from pipeline.state import Generated, Prepared, source_verdict
from pipeline.tombstones import read_tombstones
from schemas.outcomes import Outcome, Verdict
from schemas.sample import INDEX_NAME, read_index
from schemas.store import DiskStore, Store
from schemas.units import Clip, PortraitUnit, SourceFile


@dataclass
class Summary:
    """How a run stands when it returns: outcome -> count."""

    sources: dict[str, int] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    unidentified: int = 0  # clips and portraits of whom nobody could say who they are: the stage failed
    samples: int = 0
    shards: str = ""  # where the pair set is


def list_run(
    root: Store, config: RunConfig, base: Path, *, save: bool = True, say: Callable[[str], None] = lambda _: None
) -> tuple[list[SourceFile], list[SourceFile]]:
    """All clip and portrait files ever listed for this run: a file that has gone since is still a unit with an outcome.

    But for those that were forgotten, though the config may list them still; how many those are is said.
    """
    known = _known_sources(root)
    tombstones = read_tombstones(root)
    listed = {
        kind: listing(entries, suffixes, base, must_match=not known[kind] and not tombstones)
        for kind, entries, suffixes in (("clip", config.clips, CLIP_SUFFIXES), ("portrait", config.portraits, IMAGE_SUFFIXES))
    }
    return _with_listed(root, known, listed, save=save, say=say)


def list_known(root: Store, portraits: Listing | None = None) -> tuple[list[SourceFile], list[SourceFile]]:
    """All clip and portrait files ever listed for this run, and `portraits`; the config's entries are not looked at."""
    return _with_listed(root, _known_sources(root), {"portrait": portraits} if portraits else {}, save=True, say=lambda _: None)


def _known_sources(root: Store) -> dict[str, dict[str, SourceFile]]:
    """Kind -> id -> what was listed for the run so far, and what was added to it beside its config."""
    known: dict[str, dict[str, SourceFile]] = {"clip": {}, "portrait": {s.id: s for s in sources_of(tables.load(root, "added"))}}
    for r in tables.load(root, "sources"):
        known[r["kind"]][r["source"]] = _source_of(r)
    return known


def _with_listed(
    root: Store, known: dict[str, dict[str, SourceFile]], listed: Mapping[str, Listing], *, save: bool, say: Callable[[str], None]
) -> tuple[list[SourceFile], list[SourceFile]]:
    tombstones, left_out = read_tombstones(root), 0
    both: dict[str, list[SourceFile]] = {}
    for kind, before in known.items():
        sources, told = listed.get(kind, Listing([], set()))
        # A bare file name takes nothing back of what a manifest once said; an emptied cell does.
        now = {s.id: s for s in sources if not is_within(s, root) and (s.id in told or s.id not in before or not says_nothing(s))}
        every = {**before, **now}.values()
        both[kind] = sorted(tombstones.let_in(every), key=lambda s: s.uri)
        left_out += len(every) - len(both[kind])
    if left_out:
        say(f"{left_out} of the files that are listed show somebody whom this run was told to forget; they are left out")
    on_file = {(r["kind"], r["source"]): r for r in tables.load(root, "sources")}
    if save and any((k, s.id) not in on_file for k, sources in both.items() for s in sources):
        rows = [on_file.get((k, s.id)) or _source_row(s, k) for k, sources in both.items() for s in sources]
        tables.save(root, "sources", rows)
    return both["clip"], both["portrait"]


def is_within(source: SourceFile, root: Store) -> bool:
    """Whether a file is the run's own: a run inside its clips' folder must not feed on what it makes."""
    if isinstance(root, DiskStore):
        return Path(source.uri).is_relative_to(root.root)
    return source.uri.startswith(root.at(""))


def _source_of(r: dict[str, Any]) -> SourceFile:
    return SourceFile(id=r["source"], uri=r["uri"], identity=r["identity"], licence=r["licence"], consent=r["consent"])


def _source_row(source: SourceFile, kind: str, **more: Any) -> dict[str, Any]:
    about = {k: v for k, v in asdict(source).items() if k != "id"}
    return {"source": source.id, "kind": kind, **about, "outcome": "", "reason": "", **more}


def save_prepared(root: Store, state: Prepared) -> None:
    write_linked(root, state.linked)
    # Before the others, since what they call accepted is known.
    tables.save(root, "known", [{"unit": unit, "since": since} for unit, since in _known(state).items()])
    rows = []
    for kind, sources, records in (("clip", state.clip_sources, state.ingest), ("portrait", state.image_sources, state.portraits)):
        for source in sources:
            outcome, reason = source_verdict(source, kind, state)
            data = records[source.id].data if source.id in records else {}
            measured = {k: data[k] for k in ("content", "frames", "fps", "width", "height", "duration_s", "has_audio") if k in data}
            rows.append(_source_row(source, kind, **measured) | {"outcome": outcome, "reason": reason})
    tables.save(root, "sources", rows)
    _save_units(root, "clips", state.clips, state.clip_verdicts, state)
    _save_units(root, "portraits", [*state.stills, *state.clip_stills], state.still_verdicts, state)
    save_outcomes(root, state, None)


def _known(state: Prepared) -> dict[str, int]:
    """Clips and image portraits that are accepted or ever were, and sources whose content is taken or ever was -> since when."""
    now = 1 + max(state.since.values(), default=-1)
    units = {c.id for c in state.accepted_clips} | {p.id for p in state.stills if state.still_verdicts[p.id].accepted}
    units |= {
        u for records in (state.ingest, state.portraits) for u, r in records.items() if r.data.get("content")
    } - state.duplicates.keys()
    return dict.fromkeys(units, now) | state.since


def _save_units(root: Store, name: str, units: Sequence[Clip | PortraitUnit], verdicts: dict[str, Verdict], state: Prepared) -> None:
    rows = []
    for unit in units:
        verdict = verdicts[unit.id]
        looks = state.identity[unit.id].data if unit.id in state.identity else {}
        scores = {**unit.scores, **{f"identity_{k}": looks[k] for k in ("agreement", "agreement_min") if k in looks}}
        of_file = {"source": unit.source.id, "uri": unit.source.uri, "licence": unit.source.licence, "consent": unit.source.consent}
        origin = {**of_file, "identity": unit.source.identity}
        ending = {"outcome": Outcome.DONE if verdict.accepted else Outcome.REJECTED, "reason": verdict.reason}
        copy = {"near_duplicate_of": state.near_duplicates.get(unit.id, "")}
        rows.append({**asdict(unit), **origin, **ending, **copy, "scores": scores, name[:-1]: unit.id})
    tables.save(root, name, rows)


def save_outcomes(root: Store, prepared: Prepared, generated: Generated | None) -> None:
    barred = _barred(prepared)
    rows = list(barred.values())
    stages = [prepared.ingest, prepared.faces, prepared.portraits, prepared.identity]
    stages += [generated.motion, generated.reenact, generated.regions] if generated else []
    for records in stages:
        for r in records.values():
            fields: dict[str, Any] = {n: getattr(r, n) for n in tables.OUTCOMES.names}
            if (r.stage, r.unit) in barred:
                continue  # whatever was made of it while it was allowed
            if r.unit in prepared.duplicates and r.outcome == Outcome.DONE:
                fields |= {"outcome": Outcome.REJECTED, "reason": "duplicate", "message": f"same content as {prepared.duplicates[r.unit]}"}
            rows.append(fields)
    verdicts = [(c.id, "clip", c.shot, c.source.uri, "gates", prepared.clip_verdicts[c.id]) for c in prepared.clips]
    stills = (*prepared.stills, *prepared.clip_stills)
    verdicts += [(p.id, "portrait", p.clip or p.source.id, p.source.uri, "gates", prepared.still_verdicts[p.id]) for p in stills]
    if generated:
        served = {p.clip for p in generated.live()}
        lonely = [c for c in prepared.accepted_clips if c.id not in served]
        rows += [_verdict_row(c.id, "clip", c.shot, c.source.uri, "plan", Outcome.REJECTED, "no_partner") for c in lonely]
        uri = {c.id: c.source.uri for c in prepared.clips}
        for p in generated.planned:
            outcome, reason = generated.verdict(p)
            if outcome:
                stage = "plan" if reason == "partner_gone" else "quality"
                rows.append(_verdict_row(p.pair, "pair", p.clip, uri.get(p.clip, ""), stage, outcome, reason))
    for unit, kind, parent, source_uri, stage, verdict in verdicts:
        outcome = Outcome.DONE if verdict.accepted else Outcome.REJECTED
        of = prepared.near_duplicates.get(unit)
        message = f"almost the same pictures as {of}" if of else ""
        rows.append(_verdict_row(unit, kind, parent, source_uri, stage, outcome, verdict.reason) | {"message": message})
    tables.save(root, "outcomes", rows)


def _barred(state: Prepared) -> dict[tuple[str, str], dict[str, Any]]:
    """Stage and source -> the outcome of a file that may not be used."""
    rows = {}
    for stage, kind, sources in (("ingest", "source", state.clip_sources), ("portraits", "portrait", state.image_sources)):
        for s in sources:
            if not (allowed := state.may_use(s)).accepted:
                rows[stage, s.id] = _verdict_row(s.id, kind, "", s.uri, stage, Outcome.REJECTED, allowed.reason)
    return rows


def _verdict_row(unit: str, kind: str, parent: str, uri: str, stage: str, outcome: str, reason: str) -> dict[str, Any]:
    about = {"unit": unit, "kind": kind, "parent": parent, "source_uri": uri, "stage": stage}
    return {**about, "outcome": outcome, "reason": reason, "message": "", "attempts": 1, "seconds": 0.0}


def summarise(root: Store, config: RunConfig, prepared: Prepared, generated: Generated | None) -> Summary:
    def count(outcomes: Sequence[str]) -> dict[str, int]:
        return {o or "left": list(outcomes).count(o) for o in sorted(set(outcomes))}

    sources = [source_verdict(s, "clip", prepared) for s in prepared.clip_sources]
    sources += [source_verdict(s, "portrait", prepared) for s in prepared.image_sources]
    clips = [Outcome.DONE if v.accepted else Outcome.REJECTED for v in prepared.clip_verdicts.values()]
    pairs = [generated.verdict(p) for p in generated.live()] if generated else []
    reasons = [r for _, r in (*sources, *pairs) if r]
    folder = root.sub(f"shards/{config.set_name}")
    packed = folder.size(INDEX_NAME) >= 0
    return Summary(
        sources=count([o for o, _ in sources]),
        clips=count(clips),
        pairs=count([o for o, _ in pairs]),
        reasons={r: reasons.count(r) for r in sorted(set(reasons))},
        unidentified=sum(r.outcome in (Outcome.FAILED, Outcome.QUARANTINED) for r in prepared.identity.values()),
        samples=read_index(folder).num_rows if packed else 0,
        shards=str(folder) if packed else "",
    )
