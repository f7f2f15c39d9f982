"""Who is who: the manifest is the truth, nobody is in two places at once, and the order of the input leaves no trace."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identities import Person, Sighting, at_once, link
from pipeline.linkage import linked_groups
from pipeline.people import Earlier, identity_rows

DIRECTIONS = 5  # true people, at right angles to each other


def embedding(person: int, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A face of one of the people, float32 (16,)."""
    vector = np.eye(16)[person] + noise * np.random.default_rng(seed).normal(0, 1, 16)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def sighting(
    name: str, source: str, face: np.ndarray | None = None, *, named: str = "", span: tuple[int, int] = (0, 9), track: int = 0
) -> Sighting:
    return Sighting(
        id=name, source=source, uri=f"/{source}", person=named or f"{source}-file", named=bool(named),
        first_frame=span[0], last_frame=span[1], track=track, embedding=face,
    )  # fmt: skip


def people(sightings: list[Sighting], **more: object) -> list[Person]:
    return link(sightings, **{"min_similarity": 0.5, "min_similarity_in_file": 0.3, **more})  # type: ignore[arg-type]


def who(found: list[Person]) -> dict[str, str]:
    return {m: p.identity for p in found for m in p.members}


def parts(found: list[Person]) -> set[tuple[str, ...]]:
    return {p.members for p in found}


@st.composite
def worlds(draw: st.DrawFn) -> list[Sighting]:
    """Files, some of them named, of several shots, each with up to three faces at once; some faces without an embedding."""
    found = []
    for f in range(draw(st.integers(1, 6))):
        named = draw(st.sampled_from(["", "", "ann", "bob"]))
        for shot in range(draw(st.integers(1, 3))):
            for track in range(draw(st.integers(1, 3))):
                person, noise = draw(st.integers(0, DIRECTIONS - 1)), draw(st.sampled_from([0.0, 0.1, 0.3]))
                face = None if draw(st.integers(0, 9)) == 0 else embedding(person, noise, draw(st.integers(0, 99)))
                name = f"c{f}{shot}{track}"
                found.append(sighting(name, f"f{f}", face, named=named, span=(100 * shot, 100 * shot + 50), track=track))
    return found


def crowded(sightings: list[Sighting]) -> set[str]:
    return {a.id for a in sightings for b in sightings if a.id != b.id and at_once(a, b)}


def told(sightings: list[Sighting]) -> set[str]:
    """Files whose every face has an embedding."""
    return {s.source for s in sightings} - {s.source for s in sightings if s.embedding is None}


@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_leaves_no_trace(world: list[Sighting], rng: random.Random) -> None:
    assert people(rng.sample(world, len(world))) == people(world)


@given(worlds())
def test_everybody_is_one_person(world: list[Sighting]) -> None:
    found = people(world)
    assert sorted(m for p in found for m in p.members) == sorted(s.id for s in world)
    assert len({p.identity for p in found}) == len(found)


@given(worlds())
def test_what_the_manifest_says_is_never_broken(world: list[Sighting]) -> None:
    """But of those who are seen at once, one alone bears the name."""
    identity, crowd = who(people(world)), crowded(world)
    sure = [s for s in world if s.named and not (s.id in crowd and s.source in told(world))]
    assert all(identity[s.id] == s.person for s in sure)
    assert {i for i in identity.values() if i in ("ann", "bob")} == {s.person for s in world if s.named}


@given(worlds())
def test_faces_seen_at_once_are_two_people(world: list[Sighting]) -> None:
    identity, clear = who(people(world)), told(world)
    for a in world:
        for b in world:
            if a.id != b.id and a.source in clear and at_once(a, b):
                assert identity[a.id] != identity[b.id]


@given(worlds())
def test_who_is_known_keeps_the_name(world: list[Sighting]) -> None:
    first = people(world)
    assert people(world, earlier=who(first)) == first
    newcomer = sighting("new", "0-first", embedding(DIRECTIONS))
    more = people([*world, newcomer], earlier=who(first))
    assert {p.identity for p in more} - {p.identity for p in first} == {"0-first-file"}
    assert [p for p in more if p.members != ("new",)] == first


@given(st.lists(worlds(), min_size=2, max_size=4))
def test_a_split_changes_only_for_an_earlier_one(generations: list[list[Sighting]]) -> None:
    """Clips come, go, and look like others: whoever was there is in the table, and the same people again change nothing."""
    table: list[dict[str, Any]] = []
    for world in generations:
        known, before = Earlier.of(table), {r["identity"]: r for r in table}
        found = people(world, earlier=known.identity, seen=known.seen)
        table = rows_of(found, table)
        after = {r["identity"]: r for r in table}
        assert before.keys() | {p.identity for p in found} == after.keys()
        for identity, row in before.items():
            earlier = [r["split"] for r in after.values() if r["same_as"] == identity and r["seen"] < row["seen"]]
            assert after[identity]["split"] in [row["split"], *earlier]
            assert after[identity]["seen"] <= row["seen"]
        members = [m for r in table for m in r["members"]]
        assert len(members) == len(set(members)) and {s.id for s in world} <= set(members)
        known = Earlier.of(table)
        assert people(world, earlier=known.identity, seen=known.seen) == found
        assert rows_of(found, table) == table


def rows_of(found: list[Person], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts: dict[str, Counter[str]] = {"clips": Counter(), "portraits": Counter()}
    return identity_rows(found, before, {"train": 0.5, "val": 0.5}, 0, counts)


@given(worlds())
def test_without_embeddings_the_file_or_the_manifest_is_the_person(world: list[Sighting]) -> None:
    blind = [replace(s, embedding=None) for s in world]
    for earlier in ({}, who(people(world))):
        found = people(blind, earlier=earlier)
        assert who(found) == {s.id: s.person for s in world}
        assert {p.linked for p in found} <= {"manifest", "file"} and all(p.agreement == -1 for p in found)


def test_embeddings_link_across_files() -> None:
    found = people([sighting("a", "x", embedding(0)), sighting("b", "y", embedding(0, 0.1)), sighting("c", "z", embedding(1))])
    assert who(found) == {"a": "x-file", "b": "x-file", "c": "z-file"}
    assert {p.identity: p.linked for p in found} == {"x-file": "embedding", "z-file": "file"}
    assert 0.8 < next(p for p in found if p.linked == "embedding").agreement < 1


def test_a_face_in_a_silent_file_gets_the_name_that_it_has_elsewhere() -> None:
    found = people([sighting("a", "x", embedding(0), named="ann"), sighting("b", "y", embedding(0, 0.1))])
    assert [(p.identity, p.name, p.members, p.linked) for p in found] == [("ann", "ann", ("a", "b"), "embedding")]


def test_a_film_has_many_people() -> None:
    shots = [sighting(f"c{k}", "film", embedding(k % 3, 0.1, k), span=(100 * k, 100 * k + 50)) for k in range(9)]
    found = people(shots)
    assert parts(found) == {("c0", "c3", "c6"), ("c1", "c4", "c7"), ("c2", "c5", "c8")}
    assert {p.identity for p in found} == {"film-file", "film-file-c1", "film-file-c2"}


def test_a_face_that_cannot_be_told_may_be_anybody_in_its_file() -> None:
    found = people(
        [sighting("a", "film", embedding(0)), sighting("b", "film", embedding(1), span=(50, 60)), sighting("c", "film", span=(90, 99))]
    )
    assert who(found) == dict.fromkeys("abc", "film-file")


def test_files_that_cannot_be_told_and_are_linked_to_one_film_are_not_one() -> None:
    film = [sighting(f"a{k}", "a", embedding(k), span=(100 * k, 100 * k + 50)) for k in range(2)]
    halves = [s for k in range(2) for s in (sighting(f"b{k}", f"b{k}", embedding(k)), sighting(f"h{k}", f"b{k}", span=(50, 60)))]
    found = people([*film, *halves])
    assert parts(found) == {("a0", "b0", "h0"), ("a1", "b1", "h1")} and len({p.identity for p in found}) == 2


def test_a_face_turned_away_stays_with_its_file_and_would_not_across_files() -> None:
    turned = embedding(0) * 0.4 + embedding(1) * np.float32(np.sqrt(1 - 0.4**2))
    assert len(people([sighting("a", "x", embedding(0)), sighting("b", "x", turned, span=(20, 30))])) == 1
    assert len(people([sighting("a", "x", embedding(0)), sighting("b", "y", turned)])) == 2


def test_one_face_between_two_people_chains_nobody() -> None:
    """Halfway between two strangers, near to either. By the nearest member alone all three files would be one person."""
    between = (embedding(0) + embedding(1)) / np.float32(np.sqrt(2))
    ones = [sighting(f"a{k}", f"a{k}", embedding(0, 0.05, k)) for k in range(3)]
    twos = [sighting(f"b{k}", f"b{k}", embedding(1, 0.05, 9 + k)) for k in range(3)]
    found = people([*ones, *twos, sighting("m", "m", between)])
    assert len(found) == 2
    assert {frozenset(m[0] for m in p.members) - {"m"} for p in found} == {frozenset("a"), frozenset("b")}


def test_two_names_for_one_face_stay_two_and_are_told_of() -> None:
    found = people([sighting("a", "x", embedding(0), named="ann"), sighting("b", "y", embedding(0, 0.1), named="bob")])
    assert [(p.identity, [other for other, _ in p.doubts]) for p in found] == [("ann", ["bob"]), ("bob", ["ann"])]
    assert found[0].doubts[0][1] > 0.8
    apart = people([sighting("a", "x", embedding(0), named="ann"), sighting("b", "y", embedding(1), named="bob")])
    assert all(p.doubts == () for p in apart)


def test_of_those_seen_at_once_the_name_is_the_one_s_who_has_it_elsewhere() -> None:
    stranger, ann = sighting("s", "two", embedding(1), named="ann"), sighting("t", "two", embedding(0, 0.1), named="ann", track=1)
    found = who(people([stranger, ann, sighting("a", "one", embedding(0), named="ann")]))
    assert found["t"] == found["a"] == "ann" and found["s"] == "ann-s"
    alone = who(people([stranger, ann]))
    assert alone == {"s": "ann", "t": "ann-t"}  # nothing says more than the order of tracks


def test_clips_that_share_the_frame_at_their_seam_are_not_seen_at_once() -> None:
    one, two = sighting("a", "x", embedding(0), span=(0, 50)), sighting("b", "x", embedding(0), span=(50, 90), track=1)
    assert not at_once(one, two) and at_once(one, replace(two, first_frame=49))
    assert not at_once(one, replace(two, first_frame=10, track=0)) and not at_once(one, replace(two, source="y", first_frame=10))


def test_of_two_who_are_one_the_earlier_name_stays() -> None:
    world = [sighting("a", "x", embedding(0)), sighting("b", "y", embedding(0)), sighting("c", "z", embedding(0))]
    earlier = {"a": "x-file", "b": "y-file", "c": "y-file"}
    assert set(who(people(world, earlier=earlier, seen={"x-file": 3, "y-file": 1})).values()) == {"y-file"}
    assert set(who(people(world, earlier=earlier, seen={"x-file": 1, "y-file": 3})).values()) == {"x-file"}


def test_one_who_is_two_leaves_the_name_to_most() -> None:
    world = [sighting("a", "x", embedding(1)), sighting("b", "y", embedding(0)), sighting("c", "z", embedding(0))]
    found = who(people(world, earlier=dict.fromkeys("abc", "somebody"), seen={"somebody": 0}))
    assert found == {"a": "x-file", "b": "somebody", "c": "somebody"}


@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.floats(0.1, 0.9))
def test_the_linkage_is_what_its_definition_says(seed: int, n: int, threshold: float) -> None:
    """The plain way: all pairs of groups, the most alike first, each mean taken from the vectors themselves."""
    rng = np.random.default_rng(seed)
    vectors = np.stack([embedding(int(rng.integers(4)), 0.25, int(rng.integers(1000))) for _ in range(n)]).astype(np.float64)
    apart = {(i, j) for i in range(n) for j in range(i) if rng.random() < 0.05} | {(0, n - 1)} - {(0, 0)}
    names = [str(rng.choice(["", "", "a", "b"])) for _ in range(n)]
    groups = [[k] for k in range(n)]

    def allowed(a: list[int], b: list[int]) -> bool:
        together = {names[k] for k in a + b} - {""}
        return len(together) < 2 and not any((i, j) in apart or (j, i) in apart for i in a for j in b)

    while True:
        pairs = [
            (-round(float(np.mean(vectors[a] @ vectors[b].T)), 9), a, b) for a in groups for b in groups if a[0] < b[0] and allowed(a, b)
        ]
        if not pairs or -min(pairs)[0] < threshold:
            break
        _, a, b = min(pairs)
        groups = sorted([sorted(a + b), *(g for g in groups if g not in (a, b))])
    assert linked_groups(vectors, np.ones(n), threshold, apart=apart, names=names) == groups


def test_many_faces_are_linked_quickly() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 300, 3000)
    faces = rng.normal(0, 1, (300, 128))[true] + rng.normal(0, 0.5, (3000, 128))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    found = linked_groups(faces, np.ones(3000), 0.5, apart=set(), names=[""] * 3000)
    members = defaultdict(list)
    for k, person in enumerate(true):
        members[person].append(k)
    assert found == sorted(members.values())
