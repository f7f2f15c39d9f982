"""Tables: the ledger's records as Parquet, one row a thing, for people and programs that ask questions of a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.plan import PAIRS, PlannedPair, planned_pairs
from pipeline.storage import write_table
from schemas.sample import read_parquet
from schemas.store import Place, open_store

OUTCOMES = pa.schema(
    [
        *((name, pa.string()) for name in ("unit", "kind", "parent", "source_uri", "stage", "outcome", "reason", "message")),
        ("attempts", pa.int32()),
        ("seconds", pa.float64()),
    ]
)
SOURCES = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "uri", "kind", "identity", "licence", "consent", "content", "outcome", "reason")),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duration_s", pa.float64()),
        ("has_audio", pa.bool_()),
    ]
)
IDENTITIES = pa.schema(
    [
        ("identity", pa.string()),
        ("split", pa.string()),
        ("clips", pa.int32()),
        ("portraits", pa.int32()),
        ("name", pa.string()),  # the manifest's, "" where it says nothing
        ("linked", pa.string()),  # by what: manifest, embedding or file
        ("agreement", pa.float64()),  # cosine of the farthest member with the mean; -1 without embeddings
        ("doubts", pa.string()),  # other names whom the network takes for the same person
        ("seen", pa.int32()),  # the earlier of two that are one keeps its split
        ("same_as", pa.string()),  # of one that is gone: who has its members now
        ("members", pa.list_(pa.string())),  # clips and image portraits, also those that are not accepted now
    ]
)
# clips and image portraits that were ever accepted, sources whose content was ever taken: of copies, the one that was first stays
KNOWN = pa.schema([("unit", pa.string()), ("since", pa.int32())])
# portraits that were added to a run beside its config (pipeline.added)
ADDED = pa.schema(
    [
        *((n, pa.string()) for n in ("source", "uri", "identity", "licence", "consent")),
        ("per_clip", pa.int32()),
        ("addition", pa.int32()),  # files that were added together have one number
        ("generation", pa.int32()),  # of the plan, in which they were dealt; -1 before
    ]
)
SAMPLES = pa.schema(
    [
        *((n, pa.string()) for n in ("pair", "set", "clip", "portrait", "performer", "appearance", "split", "outcome", "reason", "tar")),
        # as KEY.json says it; "" and -1 where the pair is not made
        *((n, pa.string()) for n in ("source_digest", "licence", "consent")),
        *((n, pa.string()) for n in ("appearance_digest", "appearance_licence", "appearance_consent", "generator")),
        ("generator_version", pa.int32()),
        *((n, pa.string()) for n in ("weights_digest", "config_fingerprint", "crosspair_version")),
        ("synthetic", pa.bool_()),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
_UNIT = [*((n, pa.string()) for n in ("source", "identity", "uri", "licence", "consent", "content", "folder", "outcome", "reason"))]
CLIPS = pa.schema(
    [
        ("clip", pa.string()),
        ("shot", pa.string()),
        *_UNIT,
        *((n, pa.int64()) for n in ("first_frame", "last_frame", "frames", "fps", "size_px", "still_frame")),
        ("crop", pa.list_(pa.int32(), 3)),
        ("has_audio", pa.bool_()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("near_duplicate_of", pa.string()),
    ]
)
PORTRAITS = pa.schema(
    [
        ("portrait", pa.string()),
        ("clip", pa.string()),
        *_UNIT,
        ("image", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("near_duplicate_of", pa.string()),
    ]
)
SCHEMAS = {
    "outcomes": OUTCOMES,
    "sources": SOURCES,
    "identities": IDENTITIES,
    "known": KNOWN,
    "added": ADDED,
    "pairs": PAIRS,
    "samples": SAMPLES,
    "clips": CLIPS,
    "portraits": PORTRAITS,
}

# columns that older runs' tables do not have, and what stands for them
_LATER: dict[str, dict[str, Any]] = {
    "identities": {"name": "", "linked": "", "agreement": -1.0, "doubts": "", "seen": 0, "same_as": "", "members": []},
    "clips": {"near_duplicate_of": "", "licence": "", "consent": ""},
    "portraits": {"near_duplicate_of": "", "licence": "", "consent": ""},
    "samples": {
        **dict.fromkeys(("source_digest", "licence", "consent", "appearance_digest", "appearance_licence", "appearance_consent"), ""),
        **dict.fromkeys(("generator", "weights_digest", "config_fingerprint", "crosspair_version"), ""),
        "generator_version": -1,
        "synthetic": True,
    },
}


def save(root: Place, name: str, rows: Sequence[dict]) -> None:
    """Writes RUN/tables/NAME.parquet, rows sorted by their first column; unchanged rows leave the file alone."""
    schema = SCHEMAS[name]
    key = schema.names[0]
    ordered = sorted(rows, key=lambda r: (r[key], r.get("stage", ""), r.get("uri", ""), r.get("set", "")))
    write_table(open_store(root), f"tables/{name}.parquet", pa.Table.from_pylist(ordered, schema=schema))


def load(root: Place, name: str) -> list[dict]:
    """Rows of RUN/tables/NAME.parquet; none when it is not there yet. Map columns come as dicts. Raises ValueError for a damaged one."""
    try:
        rows: list[dict] = read(root, name).to_pylist(maps_as_pydicts="strict")
    except FileNotFoundError:
        return []
    return [{**_LATER.get(name, {}), **r} for r in rows]


def read(root: Place, name: str) -> pa.Table:
    """RUN/tables/NAME.parquet, with those of our columns that its run knew.

    Raises FileNotFoundError, and ValueError when it is damaged, or not one of ours.
    """
    store, file = open_store(root), f"tables/{name}.parquet"
    remedy = "put back a copy of it, or take it away and run again: what nothing else tells is then made anew"
    data, schema = store.read(file), SCHEMAS[name]
    with suppress(OSError, pa.ArrowException):  # damage is told of below
        there = set(pq.read_schema(pa.BufferReader(data)).names)
        schema = pa.schema([f for f in schema if f.name in there or f.name not in _LATER.get(name, {})])
    return read_parquet(data, store.at(file), schema, remedy)


def pairs(root: Place) -> pa.Table:
    """RUN/tables/pairs.parquet, the plan; empty when there is none yet. Raises ValueError when it is damaged."""
    try:
        return read(root, "pairs")
    except FileNotFoundError:
        return PAIRS.empty_table()


def load_pairs(root: Place) -> list[PlannedPair]:
    return planned_pairs(pairs(root))


def save_pairs(root: Place, plan: pa.Table) -> None:
    """Writes the plan, sorted by pair as `pipeline.plan` gives it: by columns, as it may be of millions of pairs."""
    write_table(open_store(root), "tables/pairs.parquet", plan.combine_chunks())
