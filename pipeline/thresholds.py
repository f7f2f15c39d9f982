"""Thresholds: what each gate does to the clips, portraits or pairs of a run, from the scores that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from stages.truth import NOT_MEASURED

_Gates = TypeVar("_Gates", contravariant=True)


class Threshold(Protocol[_Gates]):
    """A row of stages.gates.GATES or stages.quality.GATES."""

    @property
    def reason(self) -> str: ...
    @property
    def score(self) -> str: ...
    @property
    def field(self) -> str: ...
    def closes(self, scores: Mapping[str, float], gates: _Gates, /) -> bool: ...


@dataclass(frozen=True)
class Effect:
    """One threshold. `closes`: units that fail it; `alone`: those that no other threshold would have kept out; quartiles of the score."""

    field: str
    bound: float
    score: str
    reason: str
    measured: int
    closes: int
    alone: int
    quartiles: tuple[float, float, float, float, float]  # lowest, 25 %, median, 75 %, highest


def effects(scores: Sequence[Mapping[str, float]], table: Sequence[Threshold[_Gates]], gates: _Gates) -> list[Effect]:
    """One row per threshold of a table whose score was measured of any unit, in the order in which they decide."""
    closed = [[gate.closes(s, gates) for gate in table] for s in scores]
    rows = []
    for i, gate in enumerate(table):
        measured = [s for s, c in zip(scores, closed, strict=True) if c[i] or s.get(gate.score, NOT_MEASURED) != NOT_MEASURED]
        values = [s[gate.score] for s in measured]
        if values:
            low, first, middle, third, high = (float(q) for q in np.percentile(values, [0, 25, 50, 75, 100]))
            rows.append(
                Effect(
                    field=gate.field,
                    bound=getattr(gates, gate.field),
                    score=gate.score,
                    reason=gate.reason,
                    measured=len(values),
                    closes=sum(c[i] for c in closed),
                    alone=sum(c[i] and sum(c) == 1 for c in closed),
                    quartiles=(low, first, middle, third, high),
                )
            )
    return rows
