"""Pack: accepted pairs into deterministic, immutable tars with an index. Bytes are copied; nothing is encoded here.

Which samples stand in which tar depends on sorted keyed hashes, never on the order in which they were made. A published tar is
never rewritten: where a sample of it is no longer accepted, what remains goes into a new tar with a new number.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.card import dataset_card
from pipeline.storage import write_changed, write_table
from schemas.ids import content_digest, keyed_order
from schemas.latents import prune
from schemas.sample import (
    CONTROLS,
    INDEX_NAME,
    INDEX_SCHEMA,
    INFO,
    MEMBERS,
    SCORES,
    SampleInfo,
    decode_controls,
    finish_tar,
    index_row,
    read_index,
    read_members,
    sample_digest,
    write_tar_sample,
)
from schemas.store import Place, Store, open_store

_NEXT_NUMBER = b"crosspair.next_tar"  # in the index's metadata: numbers are never reused
_AHEAD = 4  # samples that are read while others are written: an object store answers late


@dataclass(frozen=True)
class SampleFiles:
    """An accepted pair on its way into a shard.

    Attributes:
        info: KEY.json.
        store: where the files are.
        files: member suffix -> (name in the store, digest recorded when it was made).
        scores: columns of the index.
    """

    info: SampleInfo
    store: Store
    files: Mapping[str, tuple[str, str]]
    scores: Mapping[str, float]

    @property
    def key(self) -> str:
        return self.info.key

    @property
    def split(self) -> str:
        return self.info.split

    @property
    def digests(self) -> dict[str, str]:
        return {**{name: digest for name, (_, digest) in self.files.items()}, "json": content_digest(self.info.encode())}

    def read(self) -> dict[str, bytes]:
        """Members by suffix. Raises ValueError for a file that is not what was made."""
        members = {"json": self.info.encode()}
        for name, (file, digest) in self.files.items():
            try:
                members[name] = self.store.read(file)
            except FileNotFoundError:
                members[name] = b""
            if content_digest(members[name]) != digest:
                where = self.store.at(file)
                raise ValueError(f"{where}: gone or changed since it was made; `crosspair retry RUN --damaged`, then run again")
        return members

    def row(self, tar: str, entries: list[dict]) -> dict:
        """The sample's row of the index."""
        return index_row(self.info, tar, entries, self.scores)


@dataclass(frozen=True)
class PackedSample:
    """A sample of a tar on its way into another, as it is."""

    folder: Store
    old: Mapping[str, Any]  # its row of the index

    @property
    def key(self) -> str:
        return str(self.old["sample"])

    @property
    def split(self) -> str:
        return str(self.old["split"])

    def read(self) -> dict[str, bytes]:
        """Members by suffix. Raises ValueError for one that does not have its digest."""
        return read_members(self.folder, self.old, MEMBERS)

    def row(self, tar: str, entries: list[dict]) -> dict:
        return {**self.old, "tar": tar, "members": entries}


Sample = SampleFiles | PackedSample


def pack(
    place: Place, samples: Sequence[SampleFiles], *, max_mb: int, seed: int, progress: Callable[[str], None], expressions: bool = False
) -> pa.Table:
    """Brings the pair set's folder to hold exactly `samples`; returns the index. Doing it again changes nothing.

    `expressions`: the samples' controls.npz hold expression scores, which the card has to say.
    """
    folder = open_store(place)
    before = read_index(folder) if folder.size(INDEX_NAME) >= 0 else INDEX_SCHEMA.empty_table()
    old = before.to_pylist()
    wanted = {s.info.key: s for s in samples}
    kept = _tars_still_good(folder, old, wanted)
    rows = [{**r, **_scores(wanted[r["sample"]])} for r in old if r["tar"] in kept]
    placed = {r["sample"] for r in rows}
    number = _next_number(before, old)
    new = _written(folder, number, [s for k, s in wanted.items() if k not in placed], seed, max_mb, progress)
    return _publish(folder, rows, new, number, expressions, progress)


def take_out(place: Place, gone: Set[str], *, max_mb: int, seed: int, progress: Callable[[str], None]) -> None:
    """Takes samples out of a pair set. What else stood in their tars goes into new ones; other tars are not touched.

    Tars that no index names, left by a kill, go too. A damaged neighbour holds nothing up: it is left out, and the next run packs it anew.
    """
    folder = open_store(place)
    before = read_index(folder)
    old = before.to_pylist()
    touched = {r["tar"] for r in old if r["sample"] in gone}
    rows = [r for r in old if r["tar"] not in touched]
    moved = []
    for sample in (PackedSample(folder, r) for r in old if r["tar"] in touched and r["sample"] not in gone):
        try:
            sample.read()
            moved.append(sample)
        except ValueError as e:
            progress(f"left out, `crosspair run` packs it anew: {e}")
    number = _next_number(before, old)
    new = _written(folder, number, moved, seed, max_mb, progress)
    one = next(iter([*new, *rows]), None)
    expressions = one is not None and "target_expressions" in decode_controls(read_members(folder, one, (CONTROLS,))[CONTROLS])
    _publish(folder, rows, new, number, expressions, progress)


def _written(folder: Store, number: int, samples: Sequence[Sample], seed: int, max_mb: int, progress: Callable[[str], None]) -> list[dict]:
    """Writes samples into new tars, numbered from `number` on; the index's rows."""
    rows: list[dict] = []
    by_split: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: keyed_order(s.key, seed)):
        by_split[sample.split].append(sample)
    for split in sorted(by_split):
        for written in _write_tars(folder, split, number, by_split[split], max_mb << 20):
            progress(f"{written[0]['tar']}: {len(written)} samples")
            rows += written
            number += 1
    return rows


def _publish(folder: Store, kept: list[dict], new: list[dict], number: int, expressions: bool, progress: Callable[[str], None]) -> pa.Table:
    """Makes kept and new rows the index, then takes away what it does not name, and the latents of samples that are not in it.

    `number`: of the first of the new rows' tars.
    """
    rows = sorted([*kept, *new], key=lambda r: (r["tar"], r["members"][0]["offset"]))
    number += len({r["tar"] for r in new})
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata({_NEXT_NUMBER: str(number)}))
    write_table(folder, INDEX_NAME, index)  # the commit point
    write_changed(folder, "README.md", dataset_card(str(folder).rsplit("/", 1)[-1], rows, expressions=expressions).encode())
    prune(folder, {r["sample"]: r["digest"] for r in rows}, progress)
    published = {r["tar"] for r in rows}
    # Old tars go last, so that a reader of either index finds its files.
    folder.delete([tar for tar in folder.names("", ".tar") if "/" not in tar and tar not in published])
    return index


def _next_number(index: pa.Table, old: Sequence[dict]) -> int:
    """The first number that no published tar ever had. Tars that no index ever named, left by a kill, do not count."""
    known = (index.schema.metadata or {}).get(_NEXT_NUMBER)
    return int(known) if known else 1 + max((int(r["tar"].rsplit("-", 1)[1].removesuffix(".tar")) for r in old), default=-1)


def _tars_still_good(folder: Store, old: Sequence[dict], wanted: Mapping[str, SampleFiles]) -> set[str]:
    """Tars that are there, whole, and whose every sample is wanted as it is."""
    ends: dict[str, int] = defaultdict(int)
    for r in old:
        ends[r["tar"]] = max(ends[r["tar"]], *(m["offset"] + m["size"] for m in r["members"]))
    by_tar = {tar: folder.size(tar) > end for tar, end in ends.items()}
    for r in old:
        sample = wanted.get(r["sample"])
        good = sample is not None and sample_digest(sample.digests) == r["digest"] and sample.info.split == r["split"]
        by_tar[r["tar"]] &= good
    return {tar for tar, good in by_tar.items() if good}


def _write_tars(folder: Store, split: str, number: int, samples: Sequence[Sample], max_bytes: int) -> Iterator[list[dict]]:
    """Writes samples into tars, each filled up to `max_bytes`; the index's rows of each tar."""
    ahead = _read_ahead(samples)
    waiting = next(ahead, None)
    while waiting is not None:
        tar, room = f"{split}-{number:06d}.tar", max_bytes
        rows: list[dict] = []
        with folder.writing(tar) as out:
            while waiting is not None:
                sample, members = waiting
                size = sum(len(data) for name, data in members.items() if name != INFO) + 2048 * len(members)
                if rows and size > room:
                    break
                rows.append(sample.row(tar, write_tar_sample(out, sample.key, members)))
                room -= size
                waiting = next(ahead, None)
            finish_tar(out)
        yield rows
        number += 1


def _read_ahead(samples: Iterable[Sample]) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Samples with their members, in order."""
    rest = iter(samples)
    with ThreadPoolExecutor(_AHEAD) as pool:
        reading = deque((s, pool.submit(s.read)) for s in itertools.islice(rest, _AHEAD))
        while reading:
            sample, members = reading.popleft()
            yield sample, members.result()
            reading += [(s, pool.submit(s.read)) for s in itertools.islice(rest, 1)]


def _scores(sample: SampleFiles) -> dict[str, float | None]:
    """The index's columns of scores."""
    return {n: sample.scores.get(n) for n in SCORES}
