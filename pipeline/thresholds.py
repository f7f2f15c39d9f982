"""Thresholds: what each gate does to the clips of a run, from the scores that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.gates import GATES, FaceGates


@dataclass(frozen=True)
class Effect:
    """One threshold. `closes`: clips that fail it; `alone`: those that no other threshold would have kept out; quartiles of the score."""

    field: str
    bound: float
    score: str
    reason: str
    measured: int
    closes: int
    alone: int
    quartiles: tuple[float, float, float, float, float]  # lowest, 25 %, median, 75 %, highest


def effects(scores: Sequence[Mapping[str, float]], gates: FaceGates) -> list[Effect]:
    """One row per threshold whose score was measured on any clip, in the order in which they decide."""
    closed = [[gate.closes(s, gates) for gate in GATES] for s in scores]
    rows = []
    for i, gate in enumerate(GATES):
        values = [s[gate.score] for s in scores if gate.score in s]
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
