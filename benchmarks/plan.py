"""Planning at a corpus' scale: ten million pairs of five million clips and a hundred thousand people, on one core.

    python -m benchmarks.plan [--clips N]

The tables are made up (people have between one clip and some thousands, heads are turned as in interviews) and are not part of what is
measured; planning is, pair ids and the sorted table of pairs included, and what it costs to ask again when nothing has changed, and to
write the table.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.memory import peak_mb
from pipeline.config import PairsConfig
from pipeline.plan import CLIPS, PAIRS, PEOPLE, PORTRAITS, grow_tables
from schemas.sample import parquet_bytes

CLIPS_EACH, PORTRAITS_EACH, PER_CLIP, REPEATS = 50, 4, 2, 3
PLAN_S, PEAK_MB = 60.0, 4096.0  # at most
T = TypeVar("T")


def ids(many: int, rng: np.random.Generator) -> pa.Array:
    text = np.frombuffer(rng.bytes(10 * many).hex().encode(), np.uint8)
    return pa.StringArray.from_buffers(many, pa.py_buffer(np.arange(0, 20 * many + 1, 20, dtype=np.int32)), pa.py_buffer(text))


def make_tables(clips: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Clips, portraits, people. A person's clips are exponentially many, so some have ten times the mean."""
    rng = np.random.default_rng(0)
    people = max(4, clips // CLIPS_EACH)
    names = pa.array([f"person-{k:06d}" for k in range(people)])
    share = rng.exponential(size=people)
    performer = rng.choice(people, clips, p=share / share.sum())

    def faces(many: int, yaw: float, pitch: float, most: float) -> list[np.ndarray]:
        angles = [np.clip(rng.normal(0, spread, many), -most, most) for spread in (yaw, pitch)]
        return [*angles, np.exp(rng.normal(5.5, 0.5, many))]

    who = np.repeat(np.arange(people), PORTRAITS_EACH)
    return (
        pa.Table.from_arrays([ids(clips, rng), names.take(pa.array(performer)), *map(pa.array, faces(clips, 15, 10, 45))], schema=CLIPS),
        pa.Table.from_arrays(
            [
                ids(len(who), rng),
                names.take(pa.array(who)),
                *map(pa.array, faces(len(who), 10, 8, 30)),
                pa.array(rng.normal(size=len(who))),
            ],
            schema=PORTRAITS,
        ),
        pa.Table.from_arrays([names, pa.array(rng.choice(["train", "val", "test"], people, p=[0.98, 0.01, 0.01]))], schema=PEOPLE),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5_000_000)
    clips, portraits, people = make_tables(parser.parse_args().clips)
    one_core()
    rules, nothing = PairsConfig(per_clip=PER_CLIP), PAIRS.empty_table()
    made_mb, planned_s = peak_mb(), []
    for _ in range(REPEATS):
        pairs = nothing  # two plans at a time are not what is measured
        pairs, s = timed(lambda: grow_tables(clips, portraits, people, nothing, np.zeros(0, bool), rules))
        planned_s.append(s)
    planned_mb = peak_mb()
    uses = pc.value_counts(pairs["appearance"]).field("counts").to_numpy()
    print(f"{pairs.num_rows} pairs of {clips.num_rows} clips, {portraits.num_rows} portraits, {people.num_rows} people")
    print(f"  planned    {min(planned_s):.1f} / {median(planned_s):.1f} / {max(planned_s):.1f} CPU s, min / median / max of {REPEATS}")
    print(f"  peak RSS   {planned_mb:.0f} MB, of which the tables were {made_mb:.0f}")
    print(f"  uses       of a person, 1st / 50th / 99th percentile {' / '.join(f'{p:.0f}' for p in np.percentile(uses, [1, 50, 99]))}")
    more, again_s = timed(lambda: grow_tables(clips, portraits, people, pairs, np.ones(len(pairs), bool), rules))
    print(f"  again      {again_s:.1f} CPU s, {more.num_rows} more pairs")
    data, wrote_s = timed(lambda: parquet_bytes(pairs))
    print(f"  written    {wrote_s:.1f} CPU s, {len(data) / 1e6:.0f} MB; peak RSS {peak_mb():.0f} MB in the end")
    full = pairs.num_rows >= 0.999 * PER_CLIP * clips.num_rows
    return not full or more.num_rows > 0 or median(planned_s) > PLAN_S or planned_mb > PEAK_MB


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What a work gives, and the CPU seconds that it takes: on one core the seconds, were there nothing else on the machine."""
    start = time.process_time()
    made = work()
    return made, time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
