"""The order: exactly once an epoch, the same global batches for any number of workers, fair shares, and no state but a position."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.order import Balanced, Interleaved, Uniform, share, whole_shares
from model.stream import Shards, ShardStream, StreamConfig
from schemas.sample import INDEX_NAME, INDEX_SCHEMA, sample_digest

WORLDS = (1, 2, 3, 8)
Opener = Callable[[], ShardStream]
CONFIG = StreamConfig(frames=4, history=2)


def index_of(folder: Path, performers: list[str], *, prefix: str = "s") -> Path:
    """A pair set of which only the index is there: of the order nothing more is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {name: 0.0 for name in INDEX_SCHEMA.names}
    row |= {"split": "train", "tar": "train-000000.tar", "digest": sample_digest({}), "members": [], "frames": 40, "fps": 25, "size_px": 96}
    row |= {"clip": "", "portrait": "", "appearance": "", "has_audio": False}
    rows = [row | {"sample": f"{prefix}{i:04}", "performer": p} for i, p in enumerate(performers)]
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / INDEX_NAME)
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opener]:
    root = tmp_path_factory.mktemp("order")
    one = index_of(root / "one", ["a"] * 7 + ["b"] * 3 + ["c"])
    two = index_of(root / "two", ["b"] * 2 + ["d"] * 4, prefix="t")
    both, weighted = [Shards(str(one)), Shards(str(two))], [Shards(str(one), 0.3), Shards(str(two), 0.7)]
    balanced = replace(CONFIG, mixing="balanced")
    return {
        "uniform": partial(ShardStream, one, CONFIG),
        "union": partial(ShardStream, both, CONFIG),
        "weighted": partial(ShardStream, weighted, CONFIG),
        "balanced": partial(ShardStream, both, balanced),
        "balanced, weighted": partial(ShardStream, weighted, balanced),
    }


@pytest.fixture(scope="module")
def streams(opened: dict[str, Opener]) -> dict[str, ShardStream]:
    return {which: opener() for which, opener in opened.items()}


def read_by(stream: ShardStream, position: int, steps: int, size: int, world: int) -> list[list[tuple[int, str]]]:
    """The global batches that so many workers read together, each in the order of positions."""
    batches = []
    for step in range(steps):
        shares = [share(position + step * size, size, rank=rank, world=world) for rank in range(world)]
        batches.append(sorted((p, stream.key(p)) for positions in shares for p in positions))
    return batches


@pytest.mark.parametrize("which", ["uniform", "union", "weighted", "balanced", "balanced, weighted"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_stopped_at_any_step_and_resumed_by_any_number_of_workers_the_order_is_the_uninterrupted_one(
    opened: dict[str, Opener], which: str, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, 20), "batch size")
    legs = data.draw(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(WORLDS)), min_size=1, max_size=5), "(steps, workers)")
    position, read = 0, []
    for steps, world in legs:
        read += [slot for batch in read_by(opened[which](), position, steps, size, world) for slot in batch]
        position += steps * size
    whole = opened[which]()
    assert read == [(p, whole.key(p)) for p in range(position)]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("which", ["uniform", "union"])
def test_in_uniform_mode_every_window_comes_exactly_once_an_epoch(streams: dict[str, ShardStream], which: str, world: int) -> None:
    stream, epochs = streams[which], 5
    steps = len(stream) * epochs // 5 + 1
    read = [slot for batch in read_by(stream, 0, steps, 5, world) for slot in batch]
    for epoch in range(epochs):
        keys = [key for p, key in read if epoch == p // len(stream)]
        assert sorted(keys) == sorted(stream.keys)
    assert read_by(stream, 0, steps, 5, world) == read_by(stream, 0, steps, 5, 1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_of_several_sets_each_has_its_share_at_every_position(shares: list[int], seed: int) -> None:
    lengths = [3 + k for k in range(len(shares))]
    firsts = [100 * k for k in range(len(shares))]
    order = Interleaved([Uniform(n, seed, k) for k, n in enumerate(lengths)], firsts, shares)
    positions = 2 * sum(shares) + 7
    rows = [order.at(p) for p in range(positions)]
    had = np.array([[row // 100 == k for k in range(len(shares))] for row in rows]).cumsum(0)
    due = np.outer(np.arange(1, positions + 1), shares)
    assert (had >= due // sum(shares)).all() and (had <= -(-due // sum(shares))).all()
    for k, n in enumerate(lengths):
        mine = [row - 100 * k for row in rows if row // 100 == k]
        for lap in range(len(mine) // n):
            assert sorted(mine[lap * n : (lap + 1) * n]) == list(range(n))


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_balanced_gives_performers_equal_turns_and_repeats_no_sample_before_all_of_its_performer_came(
    performers: list[str], seed: int
) -> None:
    order, count, epochs = Balanced(performers, seed), len(performers), 6
    rows = [order.at(p) for p in range(count * epochs)]
    names = sorted(set(performers))
    for epoch in range(epochs):
        turns = Counter(performers[row] for row in rows[epoch * count : (epoch + 1) * count])
        assert {turns[name] for name in names} <= {count // len(names), -(-count // len(names))}
    so_far = Counter(performers[row] for row in rows)
    assert max(so_far.values()) - min(so_far[name] for name in names) <= 1
    for name in names:
        mine = [row for row in rows if performers[row] == name]
        own = [i for i, p in enumerate(performers) if p == name]
        for lap in range(len(mine) // len(own)):
            assert sorted(mine[lap * len(own) : (lap + 1) * len(own)]) == own
    backwards = Balanced(performers, seed)
    assert [backwards.at(p) for p in reversed(range(len(rows)))][::-1] == rows


def test_balanced_turns_come_in_no_pattern() -> None:
    order = Balanced(["a"] * 40 + ["b"] * 20, 0)
    first, second = (["ab"[order.at(p) >= 40] for p in range(60 * e, 60 * e + 60)] for e in (0, 1))
    assert first != second and "aaa" in "".join(first) and first != [order.at(p) for p in range(60)]
    assert Balanced(["a"] * 40 + ["b"] * 20, 1).at(0) != order.at(0)


def test_whole_shares_are_those_that_were_written() -> None:
    assert whole_shares([0.7, 0.3]) == [7, 3] and whole_shares([1, 2.5]) == [2, 5] and whole_shares([2, 2]) == [1, 1]
    for weights in ([1, 0], [1, -1], [1, float("nan")], [float("inf"), 1]):
        with pytest.raises(ValueError, match="above 0"):
            whole_shares(weights)
    with pytest.raises(ValueError, match="fewer digits"):
        whole_shares([0.123456789, 1])


def test_the_digest_names_the_data_and_the_weights(streams: dict[str, ShardStream]) -> None:
    digests = {streams[which].digest for which in ("uniform", "union", "weighted")}
    assert len(digests) == 3 and streams["balanced"].digest == streams["union"].digest
    with_cache = ShardStream(streams["uniform"].folder, replace(CONFIG, cache_gb=1.0, max_bad_in_a_row=1))
    assert with_cache.digest == streams["uniform"].digest


def test_what_is_drawn_for_a_sample_is_new_each_time_it_comes(streams: dict[str, ShardStream]) -> None:
    stream = streams["balanced, weighted"]
    drawn = [stream._drawn_for(p, stream.key(p), 0) for p in range(3 * len(stream))]
    assert len(set(drawn)) == len(drawn) > len({stream.key(p) for p in range(3 * len(stream))})
    uniform = streams["uniform"]
    assert uniform._drawn_for(12, "k", 0) == (0, 1, "k")  # as it was before there were others
    assert streams["union"]._drawn_for(12, "k", 0) != streams["union"]._drawn_for(12, "k", 1)


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index as of a million samples of 2000 performers."""
    rows, folder = 1_000_000, tmp_path_factory.mktemp("million")

    def texts(numbers: np.ndarray) -> pa.Array:
        return pa.array(10**18 + numbers).cast(pa.string())

    names = pa.array(["controls.npz", "driving.mp4", "json", "regions.npz", "source.png", "target.mp4"] * rows)
    at = np.arange(6 * rows)
    entries = [names, pa.array(at * 4096), pa.array(np.full(len(at), 3000)), texts(at), pa.array(at.astype(np.uint64))]
    members = pa.StructArray.from_arrays(entries, fields=list(INDEX_SCHEMA.field("members").type.value_type))
    ids = texts(np.random.default_rng(0).permutation(rows))
    columns = {
        "sample": ids,
        "digest": ids,
        "split": pa.array(["train"] * rows),
        "tar": texts(np.arange(rows) // 200),
        "members": pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * 6, pa.int32()), members),
        "performer": texts(np.arange(rows) % 2000),
    }
    numbers = {"frames": 150, "fps": 25, "size_px": 576, "has_audio": 1}
    columns |= {f.name: pa.array(np.full(rows, numbers.get(f.name, 0))).cast(f.type) for f in INDEX_SCHEMA if f.name not in columns}
    pq.write_table(pa.table({f.name: columns[f.name] for f in INDEX_SCHEMA}, schema=INDEX_SCHEMA), folder / INDEX_NAME)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["uniform", "balanced"])
def test_a_million_samples_are_ready_within_seconds(million: Path, mixing: Literal["uniform", "balanced"]) -> None:
    began = time.perf_counter()
    stream = ShardStream(million, replace(CONFIG, mixing=mixing))
    built = time.perf_counter() - began
    began = time.perf_counter()
    assert len({stream.key(10**6 * epoch + place) for epoch in (0, 40) for place in (0, 1, 999_999)}) > 4
    asked = time.perf_counter() - began
    began = time.perf_counter()
    rows = [stream._sets[0].row(k) for k in range(0, 1_000_000, 1000)]
    row_ms = (time.perf_counter() - began) / len(rows) * 1e3
    print(f"\n{mixing}: {built:.1f} s to build, {asked:.2f} s for six keys of two epochs, {row_ms:.2f} ms a row")
    assert built < 30 and asked < 10 and row_ms < 5
