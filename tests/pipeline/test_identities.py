"""Who is who: the manifest is the truth, nobody is in two places at once, and the order of the input leaves no trace."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identities import Person, Sighting, at_once, link, with_names
from pipeline.linkage import linked_groups
from pipeline.people import Earlier, files_of, identity_rows

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


def people(
    sightings: list[Sighting],
    *,
    earlier: Mapping[str, str] = {},
    seen: Mapping[str, int] = {},
    min_similarity: float = 0.5,
    min_similarity_in_file: float = 0.3,
) -> list[Person]:
    found = link(sightings, min_similarity=min_similarity, min_similarity_in_file=min_similarity_in_file)
    return with_names(found, sightings, earlier=earlier, seen=seen)


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
    """Files of which some face has an embedding."""
    return {s.source for s in sightings if s.embedding is not None}


def only_told(sightings: list[Sighting]) -> list[Sighting]:
    """Without the faces that nobody can tell in files of others that can be told."""
    return [s for s in sightings if s.embedding is not None or s.source not in told(sightings)]


@st.composite
def films(draw: st.DrawFn) -> tuple[list[Sighting], dict[str, int]]:
    """Files, and who is truly in them: embeddings do not err, nobody is in two places at once, names are those of people 0 and 1."""
    found, truth = [], {}
    for f in range(draw(st.integers(1, 4))):
        person_named = draw(st.sampled_from([None, None, 0, 1]))
        for shot in range(draw(st.integers(1, 4))):
            cast = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
            if person_named is not None and person_named not in cast:
                cast[0] = person_named  # of those who are seen at once, one bears the name
            for track, person in enumerate(cast):
                name, face = f"c{f}{shot}{track}", draw(st.sampled_from([None, embedding(person), embedding(person)]))
                truth[name] = person
                said = "" if person_named is None else ("ann", "bob")[person_named]
                found.append(sighting(name, f"f{f}", face, named=said, span=(100 * shot, 100 * shot + 50), track=track))
    return found, truth


@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_leaves_no_trace(world: list[Sighting], rng: random.Random) -> None:
    assert people(rng.sample(world, len(world))) == people(world)


@given(worlds())
def test_everybody_is_one_person_or_may_be_several(world: list[Sighting]) -> None:
    found = people(world)
    members = [m for p in found for m in p.members]
    assert len(members) == len(set(members)) and {s.id for s in only_told(world)} <= set(members) <= {s.id for s in world}
    assert len({p.identity for p in found}) == len(found)


@given(worlds())
def test_what_the_manifest_says_is_never_broken(world: list[Sighting]) -> None:
    """But of those who are seen at once, one alone bears the name: nobody, where it may be one who cannot be told."""
    identity, crowd = who(people(world)), crowded(world)
    sure = [s for s in world if s.named and not (s.id in crowd and s.source in told(world))]
    assert all(identity.get(s.id, s.person) == s.person for s in sure)
    names = {i for i in identity.values() if i in ("ann", "bob")}
    whole = {s.source for s in world} - {s.source for s in world if s.embedding is None}
    assert {s.person for s in sure if s.id in identity} <= names <= {s.person for s in world if s.named}
    if len({s.person for s in world if s.named}) == 1:
        assert names >= {s.person for s in world if s.named and s.source in whole}


@given(worlds())
def test_faces_seen_at_once_are_two_people(world: list[Sighting]) -> None:
    identity, clear = who(people(world)), told(world)
    for a in world:
        for b in world:
            if a.id != b.id and a.source in clear and at_once(a, b) and {a.id, b.id} <= identity.keys():
                assert identity[a.id] != identity[b.id]


@given(worlds())
def test_who_can_be_told_is_linked_as_if_there_were_nobody_else(world: list[Sighting]) -> None:
    known = {s.id for s in only_told(world)}
    crowd = crowded(world)
    sure = [replace(s, track=0, first_frame=1000 * k, last_frame=1000 * k) for k, s in enumerate(world) if s.id not in crowd]
    for some in (sure, [s for s in world if not s.named]):  # a face at once with others bears a manifest's name less surely
        with_all = {tuple(m for m in p.members if m in known) for p in people(some)}
        assert {ms for ms in with_all if ms} == parts(people([s for s in some if s.id in known]))


@given(films())
def test_nobody_of_a_film_has_two_identities(film: tuple[list[Sighting], dict[str, int]]) -> None:
    """Else he would be paired with himself. And nobody's faces that can be told are two people's, in whatever files."""
    world, truth = film
    identity, clear = who(people(world)), told(world)
    for a in world:
        for b in world:
            if {a.id, b.id} <= identity.keys() and truth[a.id] == truth[b.id]:
                both_told = a.embedding is not None and b.embedding is not None
                assert identity[a.id] == identity[b.id] or not (a.source == b.source or both_told), (a.id, b.id)
            if a.source in clear and b.source in clear and a.source == b.source and {a.id, b.id} <= identity.keys():
                assert identity[a.id] != identity[b.id] or not at_once(a, b)


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
        before = {r["identity"]: r for r in table}
        found = people_after(world, table)
        table = rows_of(found, table)
        after = {r["identity"]: r for r in table}
        assert before.keys() | {p.identity for p in found} == after.keys()
        for identity, row in before.items():
            gone = [r for r in before.values() if after[r["identity"]]["same_as"] and set(r["members"]) & set(after[identity]["members"])]
            earlier = [r["split"] for r in gone if r["seen"] < row["seen"]]
            assert after[identity]["split"] in [row["split"], *earlier]
            assert after[identity]["seen"] <= row["seen"]
        members = [m for r in table for m in r["members"]]
        assert len(members) == len(set(members)) and {s.id for s in only_told(world)} <= set(members)
        assert people_after(world, table) == found
        assert rows_of(found, table) == table


@given(st.lists(st.tuples(worlds(), st.booleans(), st.booleans(), st.booleans()), min_size=2, max_size=4))
def test_whoever_was_there_has_no_fresh_split(generations: list[tuple[list[Sighting], bool, bool, bool]]) -> None:
    """With a network or without, cut into the same clips or others, and from a table that knows no members, as older runs wrote it."""
    table: list[dict[str, Any]] = []
    for n, (world, blind, recut, older) in enumerate(generations):
        world = [replace(s, id=f"{s.id}-{n}" if recut else s.id, embedding=None if blind else s.embedding) for s in world]
        table = [r | {"members": []} for r in table] if older else table
        known, before = Earlier.of(table), {r["identity"]: r["split"] for r in table}
        found = people_after(world, table)
        table = rows_of(found, table)
        after = {r["identity"]: r["split"] for r in table}
        of_file = {s.id: s.person for s in world if not s.named}
        there = {known.identity[m] for p in found for m in p.members if m in known.identity}
        for person in found:
            former = {known.identity.get(m) or known.became.get(of_file.get(m, ""), "") for m in person.members}
            former -= there - {known.identity.get(m) for m in person.members}  # a newcomer to a file is not who is still known there
            # who was once called by his name, as one of his clips, or as his file, is he
            called = {person.name, *(person.identity for m in person.members if person.identity.endswith(f"-{m[:6]}"))}
            former |= called | {person.identity} & set(of_file.values())
            assert not former & before.keys() or after[person.identity] in {before[f] for f in former & before.keys()}


def people_after(world: list[Sighting], table: list[dict[str, Any]]) -> list[Person]:
    """Whom a run finds that has this table of identities."""
    known = Earlier.of(table)
    return people(world, earlier=known.with_files(files_of(people(world))), seen=known.seen)


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


def test_a_face_that_cannot_be_told_is_the_one_who_is_alone_in_its_file() -> None:
    lead, other = (
        [sighting(f"a{k}", "film", embedding(0), span=(100 * k, 100 * k + 50)) for k in range(2)],
        sighting("b", "b", embedding(0)),
    )
    turned_away = sighting("c", "film", span=(300, 350))
    assert who(people([*lead, turned_away, other])) == dict.fromkeys(["a0", "a1", "c", "b"], "b-file")


def test_a_face_that_may_be_anybody_s_is_nobody_s() -> None:
    film = [
        sighting("a", "film", embedding(0)),
        sighting("b", "film", embedding(1), span=(100, 150)),
        sighting("c", "film", span=(200, 250)),
    ]
    elsewhere = sighting("d", "other", embedding(1))
    assert parts(people([*film, elsewhere])) == {("a",), ("b", "d")}
    beside, later = sighting("b", "film", track=1), sighting("c", "film", span=(100, 150))
    assert parts(people([film[0], beside])) == parts(people([film[0], beside, later])) == {("a",)}  # the later one may be either
    two = [sighting(f"c{k}", "film", span=(100, 150), track=k) for k in range(2)]
    assert parts(people([film[0], *two])) == {("a",)}
    assert parts(people(two)) == {("c0", "c1")}, "a film of which nobody can be told is one person"


def test_people_of_a_film_whom_another_film_makes_one_take_in_who_cannot_be_told() -> None:
    """Each is like the bridge, and in their own file they are not alike."""
    between = (embedding(0) + embedding(1)) / np.float32(np.sqrt(2))
    film = [
        sighting(f"a{k}", "film", embedding(k) * 0.9 + embedding(2) * np.float32(np.sqrt(0.19)), span=(100 * k, 100 * k + 50))
        for k in range(2)
    ]
    untold = sighting("c", "film", span=(300, 350))
    assert len(people([*film, untold], min_similarity=0.1, min_similarity_in_file=0.1)) == 1
    apart = people([*film, untold])
    assert parts(apart) == {("a0",), ("a1",)}
    bridges = [sighting(f"b{k}", f"b{k}", between) for k in range(3)]
    assert parts(people([*film, *bridges, untold], min_similarity=0.3)) == {("a0", "a1", "b0", "b1", "b2", "c")}


def test_a_face_that_cannot_be_told_bears_its_file_s_name_where_it_is_alone_and_the_named_face_is_known() -> None:
    alone, beside = sighting("u", "film", named="ann", span=(100, 150)), sighting("v", "film", named="ann", track=1)
    ann, stranger = sighting("a", "film", embedding(0), named="ann", span=(200, 250)), sighting("s", "film", embedding(1), named="ann")
    assert parts(people([alone, beside, ann, stranger])) == {("a", "u"), ("s",)}
    assert parts(people([alone, beside, stranger])) == {("s",)}, "the stranger may be ann"
    elsewhere = sighting("e", "other", embedding(0), named="ann")
    assert parts(people([alone, beside, stranger, elsewhere])) == {("e", "u"), ("s",)}
    assert parts(people([alone, beside])) == {("u", "v")}, "a film of which nobody can be told is the one of that name"


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


def test_a_name_that_only_crowds_have_is_not_that_of_who_is_known_by_another() -> None:
    ann, bob = sighting("a", "two", embedding(0), named="bob"), sighting("b", "two", embedding(1), named="bob", track=1)
    known = sighting("c", "one", embedding(0), named="ann")
    assert who(people([ann, bob, known])) == {"a": "ann", "b": "bob", "c": "ann"}
    others = [sighting("d", "three", embedding(2), named="bob"), sighting("e", "three", embedding(1), named="bob", track=1)]
    assert who(people([ann, bob, *others])) == {"a": "bob-a", "b": "bob", "d": "bob-d", "e": "bob"}, "who is in both"


def test_people_of_a_film_that_was_one_person_keep_its_split_in_other_clips() -> None:
    """A network is turned on, and with it another detector, which cuts other clips; a file that comes first by URI is one of them."""
    film = [sighting(f"a{k}", "film", span=(100 * k, 100 * k + 50)) for k in range(2)]
    table = rows_of(people(film), [])
    cut = [sighting(f"b{k}", "film", embedding(k), span=(100 * k, 100 * k + 40)) for k in range(2)] + [sighting("n", "early", embedding(1))]
    found = people_after(cut, table)
    assert who(found) == {"b0": "film-file-b0", "b1": "film-file", "n": "film-file"}
    assert {r["split"] for r in rows_of(found, table)} == {table[0]["split"]}


def test_a_newcomer_to_a_file_is_not_who_is_still_known_there() -> None:
    """He is one who was seen in another file, and takes no split along from this one's person, who was there earlier."""
    a, b = sighting("a", "x", embedding(0)), sighting("b", "y", embedding(1))
    table: list[dict[str, Any]] = []
    for world, split in (([a], "train"), ([a, b], "val"), ([a, b, sighting("n", "x", embedding(1), span=(50, 90))], "test")):
        found = people_after(world, table)
        table = identity_rows(found, table, {split: 1.0}, 0, {"clips": Counter(), "portraits": Counter()})
    assert {r["identity"]: (r["split"], r["members"]) for r in table} == {"x-file": ("train", ["a"]), "y-file": ("val", ["b", "n"])}


def test_nobody_s_name_is_taken_though_it_has_all_forms_of_it() -> None:
    """Three who were called as one clip in turn; then the clip is a fourth."""
    taken = {"a": "x-file", "b": "x-file-dddddd", "c": "x-file-dddddddd"}
    world = [sighting(name, name, embedding(k)) for k, name in enumerate("abc")] + [sighting("dddddddd", "x", embedding(4))]
    found = people(world, earlier=taken, seen=dict.fromkeys(taken.values(), 0))
    assert who(found) == taken | {"dddddddd": "x-file-dddddddd-2"}


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


def test_a_newcomer_is_his_files_person_only_where_nothing_of_that_one_is_there() -> None:
    """Else he would take a third person's split along, if the file's person is by now part of another."""
    rows = [
        {"identity": "film", "members": ["old"], "seen": 0, "same_as": ""},
        {"identity": "gone", "members": ["left"], "seen": 0, "same_as": "third"},
        {"identity": "third", "members": [], "seen": 1, "same_as": ""},
    ]
    known = Earlier.of(rows)
    assert known.with_files({"old": "film", "new": "film"}) == {"old": "film"}
    assert known.with_files({"new": "film"}) == {"new": "film"}
    assert known.with_files({"new": "gone"}) == {"new": "third"}, "who became another is the other"
    assert known.with_files({"new": "", "other": "nowhere"}) == {}
