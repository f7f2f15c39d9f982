"""Pack: accepted pairs into deterministic, immutable tars with an index. Bytes are copied; nothing is encoded here.

Which samples stand in which tar depends on sorted keyed hashes, never on the order in which they were made. A published tar is
never rewritten: where a sample of it is no longer accepted, what remains goes into a new tar with a new number.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipeline.card import dataset_card
from pipeline.storage import write_changed, write_table
from schemas.ids import content_digest, keyed_order
from schemas.sample import INDEX_NAME, INDEX_SCHEMA, SCORES, SampleInfo, finish_tar, read_index, sample_digest, write_tar_sample
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
    by_split: dict[str, list[SampleFiles]] = defaultdict(list)
    for sample in sorted((s for k, s in wanted.items() if k not in placed), key=lambda s: keyed_order(s.info.key, seed)):
        by_split[sample.info.split].append(sample)
    for split in sorted(by_split):
        for written in _write_tars(folder, split, number, by_split[split], max_mb << 20):
            progress(f"{written[0]['tar']}: {len(written)} samples")
            rows += written
            number += 1
    rows.sort(key=lambda r: (r["tar"], r["members"][0]["offset"]))
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata({_NEXT_NUMBER: str(number)}))
    write_table(folder, INDEX_NAME, index)  # the commit point
    write_changed(folder, "README.md", dataset_card(str(folder).rsplit("/", 1)[-1], rows, expressions=expressions).encode())
    published = {r["tar"] for r in rows}
    # Old tars go last, so that a reader of either index finds its files.
    folder.delete([tar for tar in folder.names("", ".tar") if tar not in published])
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


def _write_tars(folder: Store, split: str, number: int, samples: Sequence[SampleFiles], max_bytes: int) -> Iterator[list[dict]]:
    """Writes samples into tars, each filled up to `max_bytes`; the index's rows of each tar."""
    ahead = _read_ahead(samples)
    waiting = next(ahead, None)
    while waiting is not None:
        tar, room = f"{split}-{number:06d}.tar", max_bytes
        rows: list[dict] = []
        with folder.writing(tar) as out:
            while waiting is not None:
                sample, members = waiting
                size = sum(len(members[name]) for name in sample.files) + 2048 * len(members)
                if rows and size > room:
                    break
                rows.append(_index_row(tar, sample, write_tar_sample(out, sample.info.key, members)))
                room -= size
                waiting = next(ahead, None)
            finish_tar(out)
        yield rows
        number += 1


def _read_ahead(samples: Iterable[SampleFiles]) -> Iterator[tuple[SampleFiles, dict[str, bytes]]]:
    """Samples with their members, in order."""
    rest = iter(samples)
    with ThreadPoolExecutor(_AHEAD) as pool:
        reading = deque((s, pool.submit(s.read)) for s in itertools.islice(rest, _AHEAD))
        while reading:
            sample, members = reading.popleft()
            yield sample, members.result()
            reading += [(s, pool.submit(s.read)) for s in itertools.islice(rest, 1)]


def _index_row(tar: str, sample: SampleFiles, entries: list[dict]) -> dict:
    info = sample.info
    fields = {
        n: getattr(info, n) for n in ("frames", "fps", "size_px", "has_audio", "clip", "portrait", "performer", "appearance", "split")
    }
    digest = sample_digest({e["name"]: e["digest"] for e in entries})
    return {"sample": info.key, "tar": tar, "digest": digest, "members": entries, **fields, **_scores(sample)}


def _scores(sample: SampleFiles) -> dict[str, float | None]:
    """The index's columns of scores."""
    return {n: sample.scores.get(n) for n in SCORES}
