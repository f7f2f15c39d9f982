"""Identities: clips and portraits become people. A pure function of tables; the order of its input leaves no trace.

1. What the manifest says is the truth: what has one name is one person, what has two names is two.
2. Two faces that are seen at the same time in one source are two people.
3. Else embeddings link, and where a file has none the file is the person.
4. A face that nobody can tell, in a file of others that can be told, links nobody. It is the file's person if the file shows one person
   only, and the name's if it is seen alone in a file of that name. Else it may be any of several people: it belongs to nobody, so that it
   is used with nobody. For a person with two identities would be paired with himself.

Two groups are linked while the mean cosine over all pairs of their members (average linkage, UPGMA) reaches the threshold, the nearest
two first. A group is never as near as its nearest member is, so one doubtful face cannot chain two people together, as it would if any
pair sufficed; and unlike a centroid, whose length is made good, the mean counts members that disagree. Within a file a lower threshold
does: there the same few people are seen again and again, and one person taken for two would be paired with himself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Literal

import numpy as np

from pipeline.linkage import alike, linked_groups

Linked = Literal["manifest", "embedding", "file"]
_BY_ACCIDENT = 1  # source frames that two clips of one face may share: a frame held for long ends one and begins the next


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A clip or a portrait, as linking sees it.

    Attributes:
        person: what the manifest says of its source; where it is silent, the source's own name.
        named: whether the manifest said it.
        first_frame, last_frame: of the source; 0 and 0 for a picture.
        embedding: (D,) of unit length; None where there is none, or it is not to be trusted.
    """

    id: str
    source: str
    uri: str
    person: str
    named: bool
    first_frame: int = 0
    last_frame: int = 0
    track: int = 0
    embedding: np.ndarray | None = None

    @property
    def order(self) -> tuple[str, int, int, str]:
        return self.uri, self.first_frame, self.track, self.id


@dataclass(frozen=True, kw_only=True)
class Person:
    """An identity.

    Attributes:
        identity: its id, which travels with samples.
        name: the manifest's, "" where that is silent.
        linked: what brought its members together.
        members: ids of clips and portraits, sorted.
        files: of each member, what its file is called; "" where the manifest says who it is.
        agreement: cosine of the member farthest from the mean of all; -1 without embeddings.
        doubts: other names of which the network says that they are the same person, with the similarity.
    """

    identity: str
    name: str
    linked: Linked
    members: tuple[str, ...]
    files: tuple[str, ...] = ()
    agreement: float = -1.0
    doubts: tuple[tuple[str, float], ...] = ()


@dataclass
class _Group:
    """People on the way: members, in order, that are one person."""

    members: list[Sighting]
    name: str = ""
    linked: Linked = "file"
    mean: np.ndarray = field(init=False)  # of the embeddings, float64 (D,); zero without any
    count: int = field(init=False)  # of embeddings; without any this is a whole file, or several of one name

    def __post_init__(self) -> None:
        self.members = sorted(self.members, key=lambda s: s.order)
        found = [s.embedding for s in self.members if s.embedding is not None]
        self.count = len(found)
        self.mean = np.stack(found).astype(np.float64).mean(0) if self.count else np.zeros(0)

    def add(self, untold: Sequence[Sighting]) -> None:
        """More members, none with an embedding."""
        self.members = sorted([*self.members, *untold], key=lambda s: s.order)


def link(sightings: Iterable[Sighting], *, min_similarity: float, min_similarity_in_file: float) -> list[Person]:
    """People without identities, by their first members; each sighting is a member of one, but for those that may be any of several."""
    listed = _listed(sightings)
    of_source: defaultdict[str, list[Sighting]] = defaultdict(list)
    for sighting in listed:
        of_source[sighting.source].append(sighting)
    crowd = {listed[k].id for pair in _pairs_at_once(listed) for k in pair}
    groups = [g for part in of_source.values() for g in _in_file(part, crowd, min_similarity_in_file)]
    groups = _linked(_one_a_name(groups), min_similarity)
    _name_crowds(groups)
    _add_untold(groups, of_source.values(), crowd)
    groups.sort(key=lambda g: g.members[0].order)
    doubts = _doubts([g for g in groups if g.name], min_similarity)
    return [
        Person(
            identity="",
            name=group.name,
            linked=group.linked,
            members=tuple(s.id for s in by_id),
            files=tuple("" if s.named else s.person for s in by_id),
            agreement=_agreement(group),
            doubts=tuple(doubts.get(group.name, ())),
        )
        for group in groups
        for by_id in [sorted(group.members, key=lambda s: s.id)]
    ]


def with_names(
    people: Sequence[Person], sightings: Iterable[Sighting], *, earlier: Mapping[str, str] = {}, seen: Mapping[str, int] = {}
) -> list[Person]:
    """The people with their identities, sorted by them.

    Args:
        people: as `link` has them, of the same sightings.
        earlier: sighting -> identity, as of before; a person keeps the name that most of it had.
        seen: identity -> when it was first seen; of two that are one now, the name of the earlier one stays.
    """
    by_id = {s.id: s for s in _listed(sightings)}
    members = [sorted((by_id[m] for m in p.members), key=lambda s: s.order) for p in people]
    identities = _identities([p.name for p in people], members, earlier, seen)
    return sorted((replace(p, identity=i) for p, i in zip(people, identities, strict=True)), key=lambda p: p.identity)


def _listed(sightings: Iterable[Sighting]) -> list[Sighting]:
    """In order, and named where a manifest calls somebody as we call a file of which it says nothing."""
    listed = sorted(sightings, key=lambda s: s.order)
    names = {s.person for s in listed if s.named}
    return [replace(s, named=True) if s.person in names and not s.named else s for s in listed]


def at_once(a: Sighting, b: Sighting) -> bool:
    """Whether two faces are seen in one source at the same time."""
    if a.source != b.source or a.track == b.track:
        return False
    return min(a.last_frame, b.last_frame) - max(a.first_frame, b.first_frame) + 1 > _BY_ACCIDENT


def _pairs_at_once(members: Sequence[Sighting]) -> list[tuple[int, int]]:
    """Places of members that are seen at once."""
    found: list[tuple[int, int]] = []
    open_: list[int] = []
    by_start = sorted(range(len(members)), key=lambda k: (members[k].source, members[k].first_frame, members[k].order))
    for k in by_start:
        open_ = [j for j in open_ if members[j].source == members[k].source and members[j].last_frame >= members[k].first_frame]
        found += [(j, k) for j in open_ if at_once(members[j], members[k])]
        open_.append(k)
    return found


def _in_file(sightings: list[Sighting], crowd: Set[str], min_similarity: float) -> list[_Group]:
    """The people of one source file: of those who can be told, or else the file is one person. `crowd`: who is seen at once with others."""
    name = sightings[0].person if sightings[0].named else ""
    told = [s for s in sightings if s.embedding is not None]
    if not told:
        return [_Group(sightings, name, linked="manifest" if name else "file")]
    if not name:
        return _linked([_Group([s]) for s in told], min_similarity)
    # The manifest's name is that of one of those who are seen at once; who is seen alone bears it surely.
    alone = [s for s in told if s.id not in crowd]
    core = [_Group(alone, name, linked="manifest")] if alone else []
    return _linked([*core, *(_Group([s]) for s in told if s.id in crowd)], min_similarity)


def _add_untold(groups: list[_Group], files: Collection[list[Sighting]], crowd: Set[str]) -> None:
    """Puts faces that nobody can tell into the groups that they surely belong to, files that have no others aside."""
    place = {s.id: g for g in groups for s in g.members}
    named = {g.name: g for g in groups}
    # whose face is known, so that those in a crowd who are not in his group are not he
    sure = {s.person for part in files for s in part if s.named and s.embedding is not None and s.id not in crowd}
    for part in files:
        told = [s for s in part if s.embedding is not None]
        untold = [s for s in part if s.embedding is None]
        if not told:
            continue
        if part[0].named:
            if part[0].person in sure:
                named[part[0].person].add([s for s in untold if s.id not in crowd])
        elif len({id(place[s.id]) for s in told}) == 1 and not any(s.id in crowd for s in untold):
            place[told[0].id].add(untold)


def _one_a_name(groups: list[_Group]) -> list[_Group]:
    """Groups of one name made one."""
    named: defaultdict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        if group.name:
            named[group.name].append(group)
    return [*(_merged(parts, "manifest", name) for name, parts in named.items()), *(g for g in groups if not g.name)]


def _name_crowds(groups: list[_Group]) -> None:
    """A name that only crowds have goes to who is in most files of that name, else to the first; not to who is known by another."""
    named = {g.name for g in groups}
    claims = []
    for group in groups:
        if not group.name:
            files = Counter(name for name, _ in {(s.person, s.source) for s in group.members if s.named})
            claims += [(-n, group.members[0].order, name, group) for name, n in files.items() if name not in named]
    for _, _, name, group in sorted(claims, key=lambda claim: claim[:3]):
        if not group.name and name not in named:
            group.name, group.linked = name, "manifest" if len(group.members) == 1 else "embedding"
            named.add(name)


def _merged(parts: Sequence[_Group], linked: Linked, name: str) -> _Group:
    if len(parts) == 1:
        return parts[0]
    kinds = {p.linked for p in parts} | {linked}
    members = [s for p in parts for s in p.members]
    return _Group(members, name, "embedding" if "embedding" in kinds else linked)


def _linked(groups: list[_Group], min_similarity: float) -> list[_Group]:
    """Groups whose embeddings are alike made one; never two names, never two who are seen at once."""
    groups = sorted(groups, key=lambda g: g.members[0].order)
    able = [g for g in groups if g.count]
    if not able:
        return groups
    place = {s.id: k for k, g in enumerate(able) for s in g.members}
    everyone = [s for g in able for s in g.members]
    apart = {(place[everyone[i].id], place[everyone[j].id]) for i, j in _pairs_at_once(everyone)}
    names = [g.name for g in able]
    means, counts = np.stack([g.mean for g in able]), np.array([g.count for g in able])
    found = linked_groups(means, counts, min_similarity, apart=apart, names=names)
    merged = [_merged([able[k] for k in ks], "embedding", next((names[k] for k in ks if names[k]), "")) for ks in found]
    return [*merged, *(g for g in groups if not g.count)]


def _agreement(group: _Group) -> float:
    found = [s.embedding for s in group.members if s.embedding is not None]
    length = float(np.linalg.norm(group.mean)) if group.count else 0.0
    return round(float((np.stack(found).astype(np.float64) @ (group.mean / length)).min()), 4) if length > 0 else -1.0


def _doubts(named: list[_Group], min_similarity: float) -> dict[str, list[tuple[str, float]]]:
    """Name -> other names whose faces are as alike as one person's: manifest and network contradict each other there."""
    able = [g for g in named if g.count]
    found: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
    if len(able) > 1:
        for rows, others in alike(np.stack([g.mean for g in able]), min_similarity):
            for k, j in zip(rows.tolist(), others.tolist(), strict=True):
                near = float(able[k].mean @ able[j].mean)
                if near >= min_similarity:
                    found[able[k].name].append((able[j].name, round(near, 2)))
                    found[able[j].name].append((able[k].name, round(near, 2)))
    return {name: sorted(others) for name, others in found.items()}


def _identities(
    names: Sequence[str], groups: Sequence[Sequence[Sighting]], earlier: Mapping[str, str], seen: Mapping[str, int]
) -> list[str]:
    """The identity of each group: its name; a whole file's own; what it was called before; else the first member's file's, made unique."""
    own = [n or ("" if any(s.embedding is not None for s in g) else g[0].person) for n, g in zip(names, groups, strict=True)]
    taken = set(filter(None, own))
    before = [Counter(earlier[s.id] for s in g if s.id in earlier) for g in groups]
    claims = [(seen.get(was, 0), -n, was, k) for k, counts in enumerate(before) for was, n in counts.items()]
    for _, _, was, k in sorted(claims):
        if not own[k] and was not in taken:
            own[k] = was
            taken.add(was)
    for k, group in enumerate(groups):
        if not own[k]:
            first = group[0]
            # a name of the manifest's, or of who was called as the file, is nobody else's, though somebody else may be seen in the file
            ways = [] if first.named or first.person in seen else [first.person]
            ways += [f"{first.person}-{first.id[:6]}", f"{first.person}-{first.id}"]
            more = (f"{first.person}-{first.id}-{n}" for n in count(2))
            own[k] = next(w for w in chain(ways, more) if w not in taken)
            taken.add(own[k])
    return own
