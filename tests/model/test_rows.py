"""A row in memory is the index's row, whatever the index looks like."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from model.rows import Rows
from schemas.sample import INDEX_SCHEMA

NUMBERS, WORDS = st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)
CHECKSUMS = st.none() | st.integers(0, 2**64 - 1)
MEMBERS = st.fixed_dictionaries({"name": WORDS, "offset": NUMBERS, "size": NUMBERS, "digest": WORDS, "checksum": CHECKSUMS})


@st.composite
def one_after_another(draw: st.DrawFn) -> list[dict]:
    """Members as they lie in a tar, or nearly so."""
    members, end, odd = [], draw(st.sampled_from([0, 7, 1 << 41, (1 << 42) - 512, (1 << 42) - 511])), draw(st.integers(-1, 3))
    for k in range(draw(st.integers(1, 4))):
        offset, size = end + draw(st.sampled_from([512, 600])), draw(st.sampled_from([0, 1, 700, 1 << 29, (1 << 29) + 1]))
        if k == odd:
            offset, size = draw(st.sampled_from([(end + 511, size), (offset, -1), (offset, 1 << 30), (offset, (1 << 30) + 1)]))
        members.append({"name": draw(WORDS), "offset": offset, "size": size, "digest": draw(WORDS), "checksum": draw(CHECKSUMS)})
        end = offset + size
    return members


SHORT = st.integers(-(2**31), 2**31 - 1)
ROWS = st.fixed_dictionaries(
    {
        "sample": WORDS,
        "tar": WORDS,
        "digest": WORDS,
        "frames": SHORT,
        "size_px": SHORT,
        "members": st.one_of(*[one_after_another()] * 4, st.lists(MEMBERS, max_size=4)),
    }
)


def possible(row: dict) -> bool:
    """Whether members could lie where they are said to."""
    end = first = None
    for m in row["members"]:
        if m["size"] < 0 or m["offset"] < (end or 0) + 512 or m["size"] > 1 << 30 or m["offset"] > 1 << 42:
            return False
        first, end = m["offset"] if first is None else first, m["offset"] + m["size"]
    return end is not None and end - first <= 1 << 30


@settings(max_examples=150)
@given(st.lists(ROWS, max_size=8), st.data())
def test_rows_are_those_of_the_table(rows: list[dict], data: st.DataObject) -> None:
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in ("sample", "tar", "digest", "frames", "size_px", "members")])
    cut = data.draw(st.integers(0, len(rows)))  # a large index comes in pieces
    table = pa.concat_tables([pa.Table.from_pylist(part, schema) for part in (rows[:cut], rows[cut:])])
    found = Rows(table)
    for number, row in enumerate(rows):
        one = found.row(number, row["sample"])
        assert (one.sample, one.tar, one.frames, one.size_px) == (row["sample"], row["tar"], row["frames"], row["size_px"])
        assert one.digest() == row["digest"]
        if possible(row):
            assert one.members == [(m["name"], m["offset"], m["size"], m["checksum"]) for m in row["members"]]
            assert one.digests() == {m["name"]: m["digest"] for m in row["members"]}
        else:
            assert one.members is None
