"""Added portraits: what `crosspair pairs add` brings to a run beside its config, and the generation in which each was dealt.

    RUN/tables/added.parquet    one row a file, so that every later run lists it; written before anything of it is looked at

A row is dealt when the plan holds its generation: until then whoever works on the run takes it up, and afterwards nobody does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.plan import with_generation
from pipeline.sources import Listing, says_nothing
from schemas.store import Store
from schemas.units import PortraitUnit, SourceFile

Row = dict[str, Any]
_UNDEALT = -1


def note(root: Store, named: Listing, per_clip: int) -> list[Row]:
    """Writes down that `named` are to appear `per_clip` times for each clip, in all; returns the table.

    Left as they are: those that were added before for as many pairs, and those that the config lists and that appear already.
    """
    rows = {r["source"]: r for r in tables.load(root, "added")}
    number = 1 + max((r["addition"] for r in rows.values()), default=-1)
    appearing = _appearing(root)
    for source in named.sources:
        about = {"source" if k == "id" else k: v for k, v in asdict(source).items()}
        row = rows.get(source.id)
        wanted = row["per_clip"] < per_clip if row else source.id not in appearing
        if wanted:
            about |= {"per_clip": per_clip, "addition": number, "generation": _UNDEALT}
        elif row is None or (says_nothing(source) and source.id not in named.told):
            continue
        rows[source.id] = {**(row or {}), **about}
    if rows:
        tables.save(root, "added", list(rows.values()))
    return list(rows.values())


def _appearing(root: Store) -> set[str]:
    """Image files of which the plan holds a pair."""
    planned = set(pc.unique(tables.pairs(root)["portrait"]).to_pylist())
    return {r["source"] for r in tables.load(root, "portraits") if not r["clip"] and r["portrait"] in planned}


def sources_of(rows: Iterable[Row]) -> list[SourceFile]:
    fields = ("uri", "identity", "licence", "consent")
    return [SourceFile(id=r["source"], **{k: r[k] for k in fields}) for r in rows]


def deal_added(rows: Sequence[Row], plan: pa.Table, portraits: Sequence[PortraitUnit], grow: Callable[..., pa.Table]) -> pa.Table:
    """The plan with a generation for each addition that waits for one, the oldest first; marks their rows with it.

    A row whose portrait is not accepted waits on: it may be mended. So does one of which nobody could be dealt.

    Args:
        portraits: the accepted ones.
        grow: plan, only_portraits and extra_per_clip -> the next generation (pipeline.plan.grow).
    """
    generations = set(pc.unique(plan["generation"]).to_pylist())
    waiting = [r for r in rows if r["generation"] not in generations]
    for row in waiting:
        row["generation"] = _UNDEALT  # of a session that was killed before it wrote the plan
    of_source = {p.source.id: p.id for p in portraits if not p.clip}
    here = [r for r in waiting if r["source"] in of_source]
    for number in sorted({r["addition"] for r in here}):
        mine = [r for r in here if r["addition"] == number]
        new = grow(plan, only_portraits={of_source[r["source"]] for r in mine}, extra_per_clip=mine[0]["per_clip"])
        for row in mine if len(new) else ():
            row["generation"] = new["generation"][0].as_py()
        plan = with_generation(plan, new)
    return plan
