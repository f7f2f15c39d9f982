"""The plan: who performs and who appears. A pure, seeded function of tables; it only grows, one generation at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from schemas.ids import keyed_order, pair_id
from schemas.units import Clip, PortraitUnit


@dataclass(frozen=True, kw_only=True)
class PlannedPair:
    pair: str
    clip: str
    portrait: str
    performer: str
    appearance: str
    split: str
    generation: int


def split_of(identity: str, splits: Mapping[str, float], seed: int) -> str:
    """The split of an identity: a seeded hash against the shares, so it depends on nobody else. It is kept when first seen."""
    place = int(keyed_order(f"split/{identity}", seed), 16) / 16**20
    edge = 0.0
    for name, share in splits.items():
        edge += share
        if place < edge:
            return name
    return list(splits)[-1]


def assign_splits(identities: Sequence[str], known: Mapping[str, str], splits: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split of every identity; those in `known` keep theirs, whatever the shares are now."""
    return {**{i: split_of(i, splits, seed) for i in sorted(set(identities))}, **known}


def grow(
    clips: Sequence[Clip],
    portraits: Sequence[PortraitUnit],
    earlier: Sequence[PlannedPair],
    split: Mapping[str, str],
    *,
    per_clip: int,
    resting: Set[str] = frozenset(),
    max_yaw_difference_deg: float,
    max_pitch_difference_deg: float,
    seed: int,
) -> list[PlannedPair]:
    """The next generation: pairs for clips that have none yet, or none but `resting` ones (whose portrait is not accepted now).

    Each clip gets up to `per_clip` portraits, each of another identity than its own and than each other's, of its own split,
    whose head pose is near. Among those allowed, the least used identities come first; equals are ordered by a seeded hash of clip and
    portrait. Depends on the order of no argument.
    """
    generation = 1 + max((p.generation for p in earlier), default=-1)
    served = {p.clip for p in earlier if p.pair not in resting}
    planned = {p.pair for p in earlier}
    uses: dict[str, int] = defaultdict(int)
    for pair in earlier:
        uses[pair.appearance] += pair.pair not in resting
    by_split: dict[str, list[PortraitUnit]] = defaultdict(list)
    for portrait in portraits:
        by_split[split[portrait.source.identity]].append(portrait)
    pairs: list[PlannedPair] = []
    for clip in sorted(clips, key=lambda c: keyed_order(c.id, seed)):
        if clip.id in served:
            continue
        performer = clip.source.identity
        allowed = [
            p
            for p in by_split[split[performer]]
            if p.source.identity != performer
            and pair_id(clip.id, p.id) not in planned
            and abs(p.scores["yaw_deg"] - clip.scores["yaw_deg"]) <= max_yaw_difference_deg
            and abs(p.scores["pitch_deg"] - clip.scores["pitch_deg"]) <= max_pitch_difference_deg
        ]
        taken: set[str] = set()
        for portrait in sorted(allowed, key=lambda p: (uses[p.source.identity], keyed_order(f"{clip.id}/{p.id}", seed))):
            appearance = portrait.source.identity
            if appearance in taken:
                continue
            taken.add(appearance)
            uses[appearance] += 1
            pairs.append(
                PlannedPair(
                    pair=pair_id(clip.id, portrait.id),
                    clip=clip.id,
                    portrait=portrait.id,
                    performer=performer,
                    appearance=appearance,
                    split=split[performer],
                    generation=generation,
                )
            )
            if len(taken) == per_clip:
                break
    return sorted(pairs, key=lambda p: p.pair)
