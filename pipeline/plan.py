"""The plan: who performs and who appears. A pure, seeded function of tables; it only grows, one generation at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns import mix, ranks_within
from pipeline.config import PairsConfig
from pipeline.deal import deal
from pipeline.seats import NO_LIMIT, Table
from schemas.ids import keyed_order, pair_digests, pair_id
from schemas.units import Clip, PortraitUnit
from stages.gates import still_quality

PAIRS = pa.schema(
    [*((n, pa.string()) for n in ("pair", "clip", "portrait", "performer", "appearance", "split")), ("generation", pa.int32())]
)
_FACE = [(n, pa.float64()) for n in ("yaw_deg", "pitch_deg", "face_px")]
CLIPS = pa.schema([("clip", pa.string()), ("identity", pa.string()), *_FACE])
PORTRAITS = pa.schema([("portrait", pa.string()), ("identity", pa.string()), *_FACE, ("quality", pa.float64())])
PEOPLE = pa.schema([("identity", pa.string()), ("split", pa.string())])
_AT_ONCE = 1 << 21  # rows of a chunk
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_GIVEN = 1e6  # quality: a picture that somebody chose comes before a still of a clip


@dataclass(frozen=True, kw_only=True)
class PlannedPair:
    pair: str
    clip: str
    portrait: str
    performer: str
    appearance: str
    split: str
    generation: int


def planned_pairs(pairs: pa.Table) -> list[PlannedPair]:
    return [PlannedPair(**row) for row in pairs.to_pylist()]


def with_generation(earlier: pa.Table, new: pa.Table) -> pa.Table:
    """A plan and its next generation, sorted by pair."""
    if not len(earlier) or not len(new):
        return new if len(new) else earlier
    both = pa.concat_tables([earlier, new])
    return both.take(pc.sort_indices(both["pair"]))


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
    earlier: pa.Table,
    split: Mapping[str, str],
    rules: PairsConfig,
    *,
    resting: Set[str] = frozenset(),
    embeddings: Mapping[str, np.ndarray] | None = None,
    only_portraits: Set[str] | None = None,
    extra_per_clip: int = 0,
) -> pa.Table:
    """The next generation of a plan, by units; `grow_tables` says what it is.

    Args:
        earlier: the plan, as PAIRS.
        split: of every identity.
        resting: ids of earlier pairs that are not to be had now, as their clip or portrait is not accepted.
        embeddings: of identities of whom one is known, (D,).
        only_portraits: only these portraits, and `extra_per_clip` of them for each clip, whatever it has.
    """
    live = ~pc.is_in(earlier["pair"], value_set=pa.array(sorted(resting), pa.string())).to_numpy(zero_copy_only=False)
    names = list(split)
    known = None
    if embeddings:
        known = np.full((len(names), len(next(iter(embeddings.values())))), np.nan, np.float32)
        for k, name in enumerate(names):
            if name in embeddings:
                known[k] = embeddings[name]
    return grow_tables(
        pa.Table.from_pylist([{"clip": c.id, "identity": c.source.identity, **c.scores} for c in clips], schema=CLIPS),
        pa.Table.from_pylist(
            [
                {"portrait": p.id, "identity": p.source.identity, **p.scores, "quality": still_quality(p.scores) + _GIVEN * (not p.clip)}
                for p in portraits
            ],
            schema=PORTRAITS,
        ),
        pa.table({"identity": names, "split": [split[n] for n in names]}, schema=PEOPLE),
        earlier,
        live,
        rules,
        embeddings=known,
        only_portraits=only_portraits,
        extra_per_clip=extra_per_clip,
    )


def grow_tables(
    clips: pa.Table,
    portraits: pa.Table,
    people: pa.Table,
    earlier: pa.Table,
    live: np.ndarray,
    rules: PairsConfig,
    *,
    embeddings: np.ndarray | None = None,
    only_portraits: Set[str] | None = None,
    extra_per_clip: int = 0,
) -> pa.Table:
    """The next generation of a plan: PAIRS, sorted by pair; empty where there is nothing to add.

    Each clip that has fewer than `per_clip` pairs that are not resting gets as many portraits as it lacks, each of another person than
    its own and than each other's, of its own split, whose pose and size are near. Those people come first who appear least, in this and
    earlier generations; equals are ordered by a seeded hash. So nothing is added to a plan whose tables have not changed, and where they
    have, what is planned stays. Depends on the order of no argument.

    Args:
        clips, portraits, people: as CLIPS, PORTRAITS (the higher its quality, the better), PEOPLE; columns of names may be dictionaries.
        earlier, live: the plan, as PAIRS, and which of its pairs are not resting, bool (pairs,).
        embeddings: float32 (people, D) of unit length, or rows of nan; only looked at where the rules ask for similarity.
        only_portraits: ids; then only these are dealt, all of them, and a clip gets up to `extra_per_clip` of them, whatever else it has.
    """
    by_name = pc.sort_indices(_text(people["identity"])).to_numpy()
    people, embeddings = people.take(by_name), None if embeddings is None else embeddings[by_name]
    names = _text(people["identity"])
    ids = _text(clips["clip"])
    clip_hash = _hashes(ids, rules.seed)
    order = _seeded(ids, clip_hash)
    clip_hash, clip_ids, clip_who = clip_hash[order], ids.take(order), _codes(clips["identity"], names)[order]
    all_ids, all_who = _text(portraits["portrait"]), _codes(portraits["identity"], names)
    chosen = _candidates(portraits, all_ids, all_who, rules, only_portraits)
    portrait_ids, portrait_who = all_ids.take(chosen), all_who[chosen]

    of_clip, of_portrait = _codes(earlier["clip"], clip_ids), _codes(earlier["portrait"], portrait_ids)
    # who they are now, else who they were when the pair was planned
    appears = _now(_codes(earlier["portrait"], all_ids), all_who, _codes(earlier["appearance"], names))
    performs = _now(of_clip, clip_who, _codes(earlier["performer"], names))
    counted = live & (appears >= 0)
    here = live & (of_clip >= 0)
    if only_portraits is None:
        want = rules.per_clip - np.bincount(of_clip[here], minlength=len(clip_ids))
    else:
        want = extra_per_clip - np.bincount(of_clip[here & (of_portrait >= 0)], minlength=len(clip_ids))
    resting = ~live & (of_clip >= 0) & (of_portrait >= 0)
    both = counted & (performs >= 0)
    splits = _text(people["split"])
    many = len(names)
    table = Table(
        clip_who=clip_who,
        clip_pose=_poses(clips, rules)[order],
        clip_hash=clip_hash,
        portrait_who=portrait_who,
        portrait_pose=_poses(portraits, rules)[chosen],
        split=_codes(splits, pc.unique(splits)),
        who_hash=_hashes(names, rules.seed),
        limits=_limits(rules),
        want=np.maximum(want, 0).astype(np.int32),
        uses=np.bincount(appears[counted], minlength=many),
        most=rules.per_identity or NO_LIMIT,
        performs=np.bincount(performs[live & (performs >= 0)], minlength=many),
        most_performing=rules.per_performer or NO_LIMIT,
        taken=np.unique(of_clip[here & counted].astype(np.int64) * many + appears[here & counted]),
        barred=np.unique(of_clip[resting].astype(np.int64) * len(portrait_ids) + of_portrait[resting]),
        relations=np.unique(performs[both].astype(np.int64) * many + appears[both]),
        embeddings=embeddings if rules.asks_for_similarity else None,
        similarity=(rules.min_similarity, rules.max_similarity),
    )
    deal(table, both_directions=rules.both_directions)
    generation = 1 + (pc.max(earlier["generation"]).as_py() if len(earlier) else -1)
    return _pairs(table, clip_ids, portrait_ids, names, splits, generation)


def _candidates(portraits: pa.Table, ids: pa.Array, who: np.ndarray, rules: PairsConfig, only: Set[str] | None) -> np.ndarray:
    """Rows of the portraits that may appear, by person, the best first: of each person the best few, or all of `only`."""
    quality = np.nan_to_num(portraits["quality"].to_numpy())
    hashes = _hashes(ids, rules.seed)
    order = np.lexsort((hashes, -quality, who))
    if only is not None:
        return order[pc.is_in(ids, value_set=pa.array(sorted(only), pa.string())).to_numpy(zero_copy_only=False)[order]]
    return order[ranks_within(who[order]) < rules.portraits_per_identity] if rules.portraits_per_identity else order


def _limits(rules: PairsConfig) -> np.ndarray:
    size = np.log(rules.max_face_size_ratio) if rules.max_face_size_ratio else np.inf
    return np.array([rules.max_yaw_difference_deg, rules.max_pitch_difference_deg, size])


def _poses(units: pa.Table, rules: PairsConfig) -> np.ndarray:
    """Yaw, pitch and log of the face's size, float64 (N, 3); nan for a size that is not known or not asked for."""
    size = units["face_px"].to_numpy() if rules.max_face_size_ratio else np.zeros(len(units))
    size = np.log(np.where(size > 0, size, np.nan))
    return np.stack([units["yaw_deg"].to_numpy(), units["pitch_deg"].to_numpy(), size], 1)


def _text(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column of names as one array of strings."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.cast(pa.string()) if column.type != pa.string() else column


def _codes(column: pa.ChunkedArray | pa.Array, names: pa.Array) -> np.ndarray:
    """Where in `names` each entry is, int32; -1 for one that is not there."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(column, pa.DictionaryArray):
        return np.append(_codes(column.dictionary, names), np.int32(-1))[column.indices.to_numpy()]
    return pc.fill_null(pc.index_in(column, value_set=names), -1).to_numpy()


def _now(at: np.ndarray, who: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """The person of unit `at`, where there is one, else the one on record."""
    return np.where(at >= 0, np.append(who, np.int32(-1))[at], recorded)


def _bytes(ids: pa.Array) -> np.ndarray | None:
    """The bytes of ids that are equally long, uint8 (N, L); None where they are not."""
    if not len(ids):
        return None
    offsets = np.frombuffer(ids.buffers()[1], np.int32, len(ids) + 1, ids.offset * 4)
    length = int(offsets[1] - offsets[0])
    if length == 0 or (np.diff(offsets) != length).any():
        return None
    return np.frombuffer(ids.buffers()[2], np.uint8, len(ids) * length, int(offsets[0])).reshape(-1, length)


def _hashes(ids: pa.Array, seed: int) -> np.ndarray:
    """A seeded hash of each id, uint64 (N,): as `keyed_order`, it depends on no other id."""
    text = _bytes(ids)
    if text is None:
        lengths = pc.binary_length(ids).to_numpy()
        hashes = np.zeros(len(ids), np.uint64)
        for length in np.unique(lengths):
            some = np.flatnonzero(lengths == length)
            hashes[some] = _hashes(ids.take(some), seed) if length else 0
        return hashes
    words = np.pad(text, ((0, 0), (0, -text.shape[1] % 8))).view("<u8")
    hashes = np.full(len(text), int(keyed_order("", seed)[:16], 16), np.uint64)
    for k in range(words.shape[1]):
        hashes = mix(hashes ^ words[:, k])
    return hashes


def _seeded(ids: pa.Array, hashes: np.ndarray) -> np.ndarray:
    """The order of ids by their hashes; by name where two have one."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((np.argsort(np.argsort(np.array(ids.to_pylist(), object))), hashes))
    return order


def _pairs(table: Table, clips: pa.Array, portraits: pa.Array, names: pa.Array, splits: pa.Array, generation: int) -> pa.Table:
    clip, seat = np.nonzero(table.who >= 0)
    if not len(clip):
        return PAIRS.empty_table()
    portrait, who = table.portrait[clip, seat], table.who[clip, seat]
    pairs, order = _pair_ids(clips, clip, portraits, portrait)
    parts = []
    for at in range(0, len(order), _AT_ONCE):
        rows = order[at : at + _AT_ONCE]
        performer = table.clip_who[clip[rows]]
        columns = [pairs[at : at + _AT_ONCE], clips.take(clip[rows]), portraits.take(portrait[rows])]
        columns += [names.take(performer), names.take(who[rows]), splits.take(performer)]
        columns.append(pa.array(np.full(len(rows), generation, np.int32)))
        parts.append(pa.Table.from_arrays(columns, schema=PAIRS))
    return pa.concat_tables(parts)


def _pair_ids(clips: pa.Array, clip: np.ndarray, portraits: pa.Array, portrait: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """The ids of pairs of clips and portraits, sorted, and in which order they came."""
    texts = _bytes(clips), _bytes(portraits)
    if texts[0] is None or texts[1] is None:
        names = zip(clips.take(clip).to_pylist(), portraits.take(portrait).to_pylist(), strict=True)
        ids = pa.array([pair_id(c, p) for c, p in names], pa.string())
        order = pc.sort_indices(ids).to_numpy()
        return ids.take(order), order
    raw = np.concatenate(
        [pair_digests(texts[0][clip[at : at + _AT_ONCE]], texts[1][portrait[at : at + _AT_ONCE]]) for at in range(0, len(clip), _AT_ONCE)]
    )
    first, rest = raw[:, :8].copy().view(">u8").ravel().astype(np.uint64), raw[:, 8:].copy().view(">u2").ravel()
    order = np.argsort(first)
    if (np.diff(first[order]) == 0).any():
        order = np.lexsort((rest, first))
    raw = raw[order]
    text = np.empty((len(raw), 20), np.uint8)
    text[:, ::2], text[:, 1::2] = _HEX[raw >> 4], _HEX[raw & 15]
    offsets = np.arange(0, 20 * len(raw) + 1, 20, dtype=np.int32)
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(text)), order
