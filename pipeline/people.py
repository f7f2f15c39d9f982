"""People: what a run knows of who is who, from its records to its table of identities."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from pipeline.identities import Person, Sighting, with_names
from pipeline.ledger import Record
from pipeline.linked import Linked, linked
from pipeline.near_duplicates import Pictures, near_duplicates
from pipeline.plan import assign_splits
from pipeline.sources import is_named
from schemas.outcomes import Outcome
from schemas.units import Clip, PortraitUnit
from stages.identity import IdentityConfig, Likeness

Row = dict[str, Any]
_Unit = TypeVar("_Unit", Clip, PortraitUnit)


@dataclass(frozen=True)
class Earlier:
    """What the table of identities said before.

    Attributes:
        identity: of clips and portraits.
        seen: identity -> when it was first seen.
        became: identity -> who that is, itself or another.
    """

    identity: dict[str, str]
    seen: dict[str, int]
    became: dict[str, str]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Earlier:
        rows = list(rows)
        became = {r["identity"]: r["same_as"] or r["identity"] for r in rows}
        for _ in rows:  # one who became another, who became a third
            further = {i: became.get(j, j) for i, j in became.items()}
            if further == became:
                break
            became = further
        return cls({m: r["identity"] for r in rows for m in r["members"]}, {r["identity"]: r["seen"] for r in rows}, became)

    def with_files(self, members: Mapping[str, str]) -> dict[str, str]:
        """The identities that clips and portraits had (`members`: -> what their file is called, "" where the manifest says who it is).

        Where a file was a person, and nothing of that one is there now, since the run knew no members yet or other settings cut other
        clips, that is who is in the file.
        """
        had = {m: self.identity[m] for m in members if m in self.identity}
        there = set(had.values())
        of_file = {m: self.became[f] for m, f in members.items() if m not in had and f in self.became}
        return had | {m: i for m, i in of_file.items() if i not in there}


def likenesses(records: Mapping[str, Record]) -> dict[str, Likeness]:
    return {u: Likeness.read(r.data) for u, r in records.items() if r.outcome == Outcome.DONE}


def copies(
    units: Sequence[Clip] | Sequence[PortraitUnit], found: Mapping[str, Likeness], config: IdentityConfig, since: Mapping[str, int]
) -> dict[str, str]:
    """Unit -> the one of which it is a near duplicate. `units`: accepted ones of one kind; `since`: of those known, when first accepted."""
    if not config.finds_duplicates:
        return {}
    pictures = [
        Pictures(
            id=u.id,
            source=u.source.id,
            uri=u.source.uri,
            frames=u.frames if isinstance(u, Clip) else 1,
            hashes=found[u.id].hashes,
            since=since.get(u.id, math.inf),
        )
        for u in units
        if u.id in found
    ]
    return near_duplicates(pictures, config.max_hash_distance)


def people_of(
    clips: Sequence[Clip],
    stills: Sequence[PortraitUnit],
    found: Mapping[str, Likeness],
    config: IdentityConfig,
    known: Earlier,
    before: Linked | None = None,
) -> tuple[list[Person], Linked]:
    """Who the accepted clips and image portraits show; a clip's own still is the clip's person. `before`: what was linked last."""
    sightings = [_sighting(c, found, config) for c in clips] + [_sighting(p, found, config) for p in stills]
    now = linked(sightings, config.min_similarity, config.min_similarity_in_file, before)
    return with_names(now.people, sightings, earlier=known.with_files(files_of(now.people)), seen=known.seen), now


def _sighting(unit: Clip | PortraitUnit, found: Mapping[str, Likeness], config: IdentityConfig) -> Sighting:
    span = {"first_frame": unit.first_frame, "last_frame": unit.last_frame, "track": unit.track} if isinstance(unit, Clip) else {}
    return Sighting(
        id=unit.id,
        source=unit.source.id,
        uri=unit.source.uri,
        person=unit.source.identity,
        named=is_named(unit.source),
        embedding=_embedding(unit.id, found, config),
        **span,
    )


def _embedding(unit: str, found: Mapping[str, Likeness], config: IdentityConfig) -> np.ndarray | None:
    """A clip's or a portrait's, where there is one that is to be trusted."""
    likeness = found.get(unit) if config.model else None
    return likeness.embedding if likeness is not None and likeness.agreement >= config.min_agreement else None


def embeddings_of(people: Iterable[Person], found: Mapping[str, Likeness], config: IdentityConfig) -> dict[str, np.ndarray]:
    """Identity -> direction of the mean of its members' embeddings, float32 (D,) of unit length, where any can be trusted."""
    known = {}
    for person in people:
        theirs = [e for e in (_embedding(m, found, config) for m in person.members) if e is not None]
        mean = np.mean(theirs, 0) if theirs else np.zeros(1)
        if (length := np.linalg.norm(mean)) > 0:
            known[person.identity] = (mean / length).astype(np.float32)
    return known


def files_of(people: Iterable[Person]) -> dict[str, str]:
    """Member -> what its file is called, "" where the manifest says who it is."""
    return {m: f for p in people for m, f in zip(p.members, p.files, strict=True)}


def with_identities(units: Iterable[_Unit], people: Iterable[Person]) -> list[_Unit]:
    """The units with their sources' identity set to the person's; what belongs to nobody is left as it is."""
    identity = {m: p.identity for p in people for m in p.members}
    return [replace(u, source=replace(u.source, identity=identity.get(u.id, u.source.identity))) for u in units]


def identity_rows(
    people: Sequence[Person], before: Sequence[Row], splits: Mapping[str, float], seed: int, counts: Mapping[str, Counter[str]]
) -> list[Row]:
    """The table of identities: those of now, and all that ever were, so that nobody's split is forgotten.

    Args:
        before: rows of the table as it is.
        counts: "clips" and "portraits" -> identity -> how many.
    """
    known = {r["identity"]: r for r in before}
    earlier = Earlier.of(before)
    was = earlier.identity | earlier.with_files(files_of(people))
    live = {p.identity for p in people}
    former = {p.identity: known.get(_earliest(p, known, was, live)) for p in people}
    split = assign_splits([p.identity for p in people], {i: row["split"] for i, row in former.items() if row}, splits, seed)
    now = 1 + max((r["seen"] for r in before), default=-1)
    elsewhere = {m: p.identity for p in people for m in p.members}
    left = {i: [m for m in row["members"] if m not in elsewhere] for i, row in known.items()}  # not accepted now; they may come back
    taken: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for member, identity in was.items():
        if member in elsewhere:
            taken[identity][elsewhere[member]] += 1
    rows = []
    for person in people:
        row = former[person.identity]
        rows.append(
            {
                "identity": person.identity,
                "split": split[person.identity],
                "clips": counts["clips"][person.identity],
                "portraits": counts["portraits"][person.identity],
                "name": person.name,
                "linked": person.linked,
                "agreement": person.agreement,
                "doubts": ", ".join(f"{other} ({how:.2f})" for other, how in person.doubts),
                "seen": now if row is None or (row["identity"] != person.identity and row["identity"] in live) else row["seen"],
                "same_as": "",
                "members": sorted([*person.members, *left.get(person.identity, ())]),
            }
        )
    for identity in known.keys() - live:
        same_as = max(sorted(taken[identity]), key=lambda i: taken[identity][i], default=known[identity]["same_as"])
        gone = {"clips": 0, "portraits": 0, "doubts": "", "same_as": same_as, "members": left[identity]}
        rows.append({**known[identity], **gone})
    return sorted(rows, key=lambda r: r["identity"])


def _earliest(person: Person, known: Mapping[str, Row], was: Mapping[str, str], live: set[str]) -> str:
    """The identity whose split is this person's: of those that are this person now, the one first seen."""
    former = {was[m] for m in person.members if m in was}
    own = {person.identity} & known.keys()
    # who is still there has not become somebody else, though a clip may have changed hands
    candidates = own | {f for f in former if f not in live} or former
    return min(candidates, key=lambda f: (known[f]["seen"], f != person.identity, f), default="")
