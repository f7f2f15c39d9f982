"""A row in memory is the index's row, whatever the index looks like."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from model.rows import Rows
from schemas.sample import INDEX_SCHEMA

NUMBERS, WORDS = st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)
MEMBERS = st.fixed_dictionaries(
    {"name": WORDS, "offset": NUMBERS, "size": NUMBERS, "digest": WORDS, "checksum": st.none() | st.integers(0, 2**64 - 1)}
)
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
        "members": st.lists(MEMBERS, max_size=4) | st.lists(MEMBERS | WITH_GAPS, max_size=4),
    }
)


def says_all(row: dict) -> bool:
    return all(m and None not in {**m, "checksum": 0}.values() for m in row["members"])


@given(st.lists(ROWS, max_size=8), st.data())
def test_rows_are_those_of_the_table(rows: list[dict], data: st.DataObject) -> None:
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in ("sample", "tar", "digest", "frames", "size_px", "members")])
    cut = data.draw(st.integers(0, len(rows)))  # a large index comes in pieces
    table = pa.concat_tables([pa.Table.from_pylist(part, schema) for part in (rows[:cut], rows[cut:])])
    found = Rows(table)
    for number, row in enumerate(rows):
        assert found.row(number) == (row if says_all(row) else {**row, "members": None})
