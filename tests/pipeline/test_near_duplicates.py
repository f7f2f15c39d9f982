"""Near duplicates: copies go, the first stays, and nothing else is lost."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.near_duplicates import Pictures, near_duplicates


def flipped(hashes: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
    """`bits` bits of all hashes together turned over."""
    turned = hashes.copy()
    for place in rng.choice(64 * len(hashes), bits, replace=False):
        turned[place // 64] ^= np.uint64(1 << int(place % 64))
    return turned


def pictures(name: str, source: str, hashes: np.ndarray, frames: int = 50, since: float = math.inf) -> Pictures:
    return Pictures(id=name, source=source, uri=f"/{source}", frames=frames, hashes=hashes, since=since)


def random_hashes(seed: int, looks: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, looks, np.uint64)


@st.composite
def worlds(draw: st.DrawFn) -> list[Pictures]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    looks, found = draw(st.sampled_from([1, 3, 8])), []
    for k in range(draw(st.integers(0, 12))):
        hashes = flipped(random_hashes(draw(st.integers(0, 2)), looks), draw(st.integers(0, 5 * looks)), rng)
        found.append(
            pictures(f"c{k}", f"s{draw(st.integers(0, 5))}", hashes, draw(st.integers(48, 53)), draw(st.sampled_from([0, 1, math.inf])))
        )
    return found


def distance(a: Pictures, b: Pictures) -> float:
    return float(np.bitwise_count(a.hashes ^ b.hashes).mean())


def is_copy(a: Pictures, b: Pictures, limit: float) -> bool:
    return a.source != b.source and abs(a.frames - b.frames) <= 2 and distance(a, b) <= limit


@given(worlds(), st.sampled_from([0.0, 0.3, 3.0, 8.0, 30.0, 64.0]), st.randoms(use_true_random=False))
def test_copies_are_what_their_definition_says(world: list[Pictures], limit: float, rng: random.Random) -> None:
    found = near_duplicates(rng.sample(world, len(world)), limit)
    kept: list[Pictures] = []
    for unit in sorted(world, key=lambda u: (u.since, u.uri, u.id)):
        if not any(is_copy(unit, k, limit) for k in kept):
            kept.append(unit)
    of = {u.id: [k for k in kept if is_copy(u, k, limit)] for u in world if u.id not in {k.id for k in kept}}
    assert found == {u.id: min(of[u.id], key=lambda k: (distance(u, k), k.uri, k.id)).id for u in world if u.id in of}


@given(worlds(), st.sampled_from([3.0, 8.0]))
def test_once_those_that_stay_are_known_nothing_changes(world: list[Pictures], limit: float) -> None:
    found = near_duplicates(world, limit)
    assert near_duplicates([replace(u, since=u.since if u.id in found else min(u.since, 2)) for u in world], limit) == found


@given(worlds(), st.lists(st.tuples(st.integers(0, 2**12 - 1), st.sampled_from([0.0, 3.0, 8.0])), max_size=4))
def test_whatever_is_moved_and_moved_back_the_same_ones_stay(world: list[Pictures], moves: list[tuple[int, float]]) -> None:
    """A gate lets in some (bits of a number), and a limit says how alike a copy is; who was accepted is known from then on."""
    since = {u.id: u.since for u in world if u.since < math.inf}
    first: dict[tuple[int, float], dict[str, str]] = {}
    for gate, limit in [(2**12 - 1, 3.0), *moves, *moves[::-1], (2**12 - 1, 3.0)]:
        let_in = [replace(u, since=since.get(u.id, math.inf)) for k, u in enumerate(world) if gate >> k & 1]
        found = near_duplicates(let_in, limit)
        assert first.setdefault((gate, limit), found) == found
        now = 1 + max(since.values(), default=1)
        since = {u.id: now for u in let_in if u.id not in found} | since


def test_a_copy_of_one_known_and_one_new_is_the_same_one_s_the_next_time() -> None:
    rng = np.random.default_rng(0)
    middle = random_hashes(0)
    sides = [flipped(middle, 20, rng) for _ in range(2)]
    z, a, c = pictures("z", "z", sides[0], since=0), pictures("a", "a", sides[1]), pictures("c", "c", middle)
    assert near_duplicates([z, a, c], 3) == near_duplicates([z, replace(a, since=1), c], 3) == {"c": "a"}


def test_who_was_first_stays_though_another_comes_first_by_name() -> None:
    first, second = pictures("a", "a", random_hashes(0)), pictures("b", "b", random_hashes(0))
    assert near_duplicates([first, second], 3) == {"b": "a"}
    assert near_duplicates([first, replace(second, since=0)], 3) == {"a": "b"}


def test_a_portrait_is_no_copy_of_a_clip() -> None:
    clip, still = pictures("a", "a", random_hashes(0)), pictures("b", "b", random_hashes(0)[:1], frames=1)
    assert near_duplicates([clip, still], 3) == {}
    assert near_duplicates([still, replace(still, id="c", source="c", uri="/c")], 3) == {"c": "b"}


def test_what_was_not_looked_at_is_no_copy() -> None:
    nothing = np.zeros(0, np.uint64)
    assert near_duplicates([pictures("a", "a", nothing), pictures("b", "b", nothing)], 3) == {}
    assert near_duplicates([], 3) == {}


@pytest.mark.parametrize("biased", [False, True])
def test_of_many_all_copies_are_found(biased: bool) -> None:
    """As far as a copy may be, bit by bit; where bits are biased, as those of faces are, many share a bucket."""
    rng = np.random.default_rng(0)
    bits = rng.random((1500, 8, 64)) < (rng.beta(0.3, 0.3, 64) if biased else 0.5)
    units = [pictures(f"{k:05}", f"{k:05}", np.packbits(b, axis=1).view(">u8")[:, 0].astype(np.uint64)) for k, b in enumerate(bits)]
    copies = [pictures(f"{1500 + k:05}", f"{1500 + k:05}", flipped(u.hashes, 24, rng)) for k, u in enumerate(units)]
    assert near_duplicates(units + copies, 3) == {f"{k + 1500:05}": f"{k:05}" for k in range(1500)}
    assert near_duplicates(units + copies, 2.9) == {}


def test_many_clips_of_which_each_has_a_copy_are_quick() -> None:
    """Seconds, where comparing all pairs took minutes; and one picture in ten thousand files is not ten thousand squared."""
    hashes = np.random.default_rng(0).integers(0, 2**64, (20000, 8), np.uint64)
    units = [pictures(f"{k:05}", f"{k:05}", hashes[k % 10000]) for k in range(20000)]
    units += [pictures(f"{k:05}", f"{k:05}", hashes[0]) for k in range(20000, 30000)]
    start = time.process_time()
    assert len(near_duplicates(units, 3)) == 20000
    assert time.process_time() - start < 20
