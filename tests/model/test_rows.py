"""A row in memory is the index's row, whatever the index looks like."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from model.rows import Rows
from schemas.sample import INDEX_SCHEMA

NUMBERS, WORDS = st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)
OFFSETS = st.sampled_from([0, 511, 512, 1024, 1035, 1536, 1537, 1546, 1547, 1 << 30, 1 << 42, (1 << 42) + 1]) | st.integers(0, 5000)
SIZES = st.sampled_from([0, 1, 10, 11, 512, 1 << 30, (1 << 30) + 1, -1])
CHECKSUMS = st.none() | st.integers(0, 2**64 - 1)
MEMBERS = st.fixed_dictionaries(
    {"name": WORDS, "offset": OFFSETS | NUMBERS, "size": SIZES | NUMBERS, "digest": WORDS, "checksum": CHECKSUMS}
)
IN_ORDER = st.lists(
    st.fixed_dictionaries({"name": WORDS, "offset": OFFSETS, "size": SIZES, "digest": WORDS, "checksum": CHECKSUMS}), max_size=4
)


def in_order(members: list[dict]) -> list[dict]:
    return sorted(members, key=lambda m: m["offset"])


WITH_GAPS = st.none() | st.fixed_dictionaries(
    {"name": st.none() | WORDS, "offset": st.none() | NUMBERS, "size": NUMBERS, "digest": st.none() | WORDS, "checksum": st.none()}
)
SHORT = st.integers(-(2**31), 2**31 - 1)
ROWS = st.fixed_dictionaries(
    {
        "sample": WORDS,
        "tar": WORDS,
        "digest": WORDS,
        "frames": SHORT,
        "size_px": SHORT,
        "members": IN_ORDER.map(in_order) | st.lists(MEMBERS, max_size=4) | st.lists(MEMBERS | WITH_GAPS, max_size=4),
    }
)


def possible(row: dict) -> bool:
    """Whether all is said, and members could lie where they are said to."""
    end = first = None
    for m in row["members"]:
        if m is None or None in {**m, "checksum": 0}.values():
            return False
        if m["size"] < 0 or m["offset"] < (end or 0) + 512 or m["size"] > 1 << 30 or m["offset"] > 1 << 42:
            return False
        first, end = m["offset"] if first is None else first, m["offset"] + m["size"]
    return end is not None and end - first <= 1 << 30


@given(st.lists(ROWS, max_size=8), st.data())
def test_rows_are_those_of_the_table(rows: list[dict], data: st.DataObject) -> None:
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in ("sample", "tar", "digest", "frames", "size_px", "members")])
    cut = data.draw(st.integers(0, len(rows)))  # a large index comes in pieces
    table = pa.concat_tables([pa.Table.from_pylist(part, schema) for part in (rows[:cut], rows[cut:])])
    found = Rows(table)
    for number, row in enumerate(rows):
        members = [(m["name"], m["offset"], m["size"], m["checksum"]) for m in row["members"]] if possible(row) else None
        one = found.row(number, row["sample"])
        assert (one.sample, one.tar, one.frames, one.size_px, one.members) == (
            *(row["sample"], row["tar"], row["frames"], row["size_px"], members),
        )
        assert one.digest() == row["digest"]
        assert members is None or one.digests() == {m["name"]: m["digest"] for m in row["members"]}
