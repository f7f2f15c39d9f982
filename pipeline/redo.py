"""Redo: what a run will do again and why, said before anything is done. Nothing is decided here; the ledger decides.

A unit is done again when its stage has records of it under other fingerprints, and none under the present one. Why is the difference
between the present config and the one those records were made with, which run.yaml keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import RunConfig, fingerprints
from pipeline.ledger import STAGES, Ledger
from schemas.store import Place

# Settings that change a stage's output, and the stages whose output it works on (pipeline.config.fingerprints).
_SECTIONS = {"ingest": ("ingest",), "faces": ("faces", "video"), "portraits": ("faces", "video")}
_SECTIONS |= {"identity": ("identity",), "motion": ("reenactor",), "reenact": ("reenactor",), "regions": ("controls",)}
_AFTER = {
    "ingest": (),
    "faces": ("ingest",),
    "portraits": (),
    "identity": ("faces", "portraits"),
    "motion": ("faces",),
    "reenact": ("motion", "portraits"),
    "regions": ("reenact",),
}
_LINKED = "people are linked anew, from the embeddings that are there"
_UNLINKED = "who is who says the manifest, or else the file; embeddings that are there link nobody, and stay"
_COPIES = "near duplicates are looked for anew, among the hashes that are there"
_DECIDES = {  # sections, or single settings of a section of which others are measured with
    "lineage": "files are allowed or not by what the manifests say, and nothing that is known of them is measured again",
    "gates": "verdicts on clips are taken again, from the scores that are there",
    "portrait_gates": "verdicts on portraits are taken again, from the scores that are there",
    "identity.min_similarity": _LINKED,
    "identity.min_similarity_in_file": _LINKED,
    "identity.min_agreement": _LINKED,
    "identity.max_hash_distance": _COPIES,
    "identity.near_duplicates": _COPIES,
    "quality": "verdicts on pairs are taken again, from the scores that are there",
    "pairs": "counts for pairs that are planned from now on; planned ones stay",
    "splits": "counts for people first seen from now on",
    "shards": "counts for tars that are written from now on",
}
_NOT_OUTPUT = frozenset({"files", "models", "pack", "landmarks", "allow_untrained", "provider", "batch", "threads", "expressions"})


_DEFAULTS = asdict(RunConfig(run="run", clips="clips"))  # of a section that a run began without


@dataclass(frozen=True)
class Redone:
    """One stage: units that stand, units that are done again, and why ("" when none is)."""

    stage: str
    stand: int
    again: int
    why: str

    def __str__(self) -> str:
        stand = f"{self.stand} stand" if self.stand else ""
        again = f"{self.again} again: {self.why}" if self.again else ""
        return f"{self.stage}: {', '.join(part for part in (again, stand) if part)}"


def foresee(root: Place, config: RunConfig, before: Mapping[str, Any], due: Callable[[], Mapping[str, Set[str]]]) -> list[str]:
    """Sentences about what is decided anew and what is done again, none when nothing is.

    Args:
        before: run.yaml as it is.
        due: gives stage -> units that are due as far as is known; not asked in a run whose fingerprints were never others.
    """
    said = [f"{field} {change}: {_DECIDES[section]}" for section, field, change in _decisions(before["config"], asdict(config))]
    if (model := before["config"].get("identity", {}).get("model")) and not config.identity.model:
        said.append(f"identity.model {model} -> none: {_UNLINKED}")
    history = remember(before, fingerprints(config))
    redone = list(_redone(root, config, before, history, due())) if history else []
    return said + [str(r) for r in redone] if any(r.again for r in redone) else said


def remember(before: Mapping[str, Any], prints: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the next run.yaml keeps of earlier ones, oldest first: {"fingerprints": ..., "config": ...} where fingerprints were others."""
    states = [*before.get("history", []), {"fingerprints": before["fingerprints"], "config": before["config"]}]
    latest = {tuple(sorted(s["fingerprints"].items())): s for s in states}
    return [s for s in latest.values() if s["fingerprints"] != prints]


def _redone(
    root: Place, config: RunConfig, before: Mapping[str, Any], history: list[dict[str, Any]], due: Mapping[str, Set[str]]
) -> Iterator[Redone]:
    prints, now = fingerprints(config), asdict(config)
    again_in: set[str] = set()
    for stage in STAGES:
        units: dict[str, set[str]] = {}
        for record in Ledger(root).history(stage):
            units.setdefault(record.fingerprint, set()).add(record.unit)
        stand = units.pop(prints[stage], set())
        again = set().union(*units.values()) - stand
        if before["fingerprints"].get(stage) == prints[stage] and not again_in & set(_AFTER[stage]):
            again &= due.get(stage, set())  # the others are not there any more with the present settings
        if stage == "identity" and not config.identity.measures:
            again = set()  # the network was taken away: nothing is embedded any more
        if again:
            again_in.add(stage)
        made_with = next((h["config"] for h in reversed(history) if units.get(h["fingerprints"].get(stage), set()) & again), None)
        if stand or again:
            yield Redone(stage, len(stand), len(again), _why(stage, made_with, now, again_in) if again else "")


def _why(stage: str, before: Mapping[str, Any] | None, now: Mapping[str, Any], again_in: set[str]) -> str:
    if before is None:
        return "made with settings that are not on record"
    sections = [(s, _with_defaults(before.get(s), _DEFAULTS[s])) for s in _SECTIONS[stage]]
    changes = [c for section, was in sections for c in _changes(was, now[section], section)]
    reasons = [f"{field} {change}" for field, change in changes if field not in _DECIDES]
    reasons += [f"after {other}" for other in _AFTER[stage] if other in again_in]
    return "; ".join(reasons) or "another version of the stage"


def _decisions(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for section in _DECIDES:
        name, _, field = section.partition(".")
        was, is_now = before.get(name), now[name]
        was = None if was is None else _with_defaults(was, _DEFAULTS[name])
        if field and was is not None:
            was, is_now = was.get(field), is_now[field]
        if was is not None:  # else an older run, which knew no such section
            yield from ((section, *change) for change in _changes(was, is_now, section))


def _with_defaults(section: Any, defaults: Any) -> Any:
    """A section as a run began with it; fields that it did not know are as they are by default."""
    if section is None or not isinstance(defaults, Mapping):
        return defaults if section is None else section
    return {**defaults, **{key: _with_defaults(value, defaults.get(key)) for key, value in section.items()}}


def _changes(before: Any, now: Any, name: str) -> Iterator[tuple[str, str]]:
    """Fields that differ, by their full names, and how."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            if key not in _NOT_OUTPUT:
                yield from _changes(before.get(key), now.get(key), f"{name}.{key}")
    elif _plain(before) != _plain(now):
        yield name, f"{before} -> {now}"


def _plain(value: Any) -> Any:
    """As YAML gives it back."""
    return list(value) if isinstance(value, tuple) else value
