"""Pack: accepted pairs into deterministic, immutable tars with an index. Bytes are copied; nothing is encoded here.

Which samples stand in which tar depends on sorted keyed hashes, never on the order in which they were made. A published tar is
never rewritten: where a sample of it is no longer accepted, what remains goes into a new tar with a new number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.card import dataset_card
from pipeline.storage import atomic_file, write_atomic, write_table
from schemas.ids import content_digest, keyed_order
from schemas.sample import INDEX_NAME, INDEX_SCHEMA, SampleInfo, finish_tar, read_index, sample_digest, write_tar_sample

_NEXT_NUMBER = b"crosspair.next_tar"  # in the index's metadata: numbers are never reused


@dataclass(frozen=True)
class SampleFiles:
    """An accepted pair on its way into a shard.

    Attributes:
        info: KEY.json.
        files: member suffix -> (path, digest recorded when it was made).
        scores: columns of the index.
    """

    info: SampleInfo
    files: Mapping[str, tuple[Path, str]]
    scores: Mapping[str, float]

    @property
    def digests(self) -> dict[str, str]:
        return {**{name: digest for name, (_, digest) in self.files.items()}, "json": content_digest(self.info.encode())}

    @property
    def bytes(self) -> int:
        sizes = (path.stat().st_size for path, _ in self.files.values() if path.is_file())
        return sum(sizes) + 2048 * (len(self.files) + 1)


def pack(folder: Path, samples: Sequence[SampleFiles], *, max_mb: int, seed: int, progress: Callable[[str], None]) -> pa.Table:
    """Brings the pair set's folder to hold exactly `samples`; returns the index. Doing it again changes nothing."""
    old = _old_index(folder)
    wanted = {s.info.key: s for s in samples}
    kept = _tars_still_good(folder, old, wanted)
    rows = [r for r in old if r["tar"] in kept]
    placed = {r["sample"] for r in rows}
    number = _next_number(folder, old)
    by_split: dict[str, list[SampleFiles]] = defaultdict(list)
    for sample in sorted((s for k, s in wanted.items() if k not in placed), key=lambda s: keyed_order(s.info.key, seed)):
        by_split[sample.info.split].append(sample)
    for split in sorted(by_split):
        for group in _groups(by_split[split], max_mb << 20):
            tar = f"{split}-{number:06d}.tar"
            rows += _write_tar(folder / tar, group)
            progress(f"{tar}: {len(group)} samples")
            number += 1
    rows.sort(key=lambda r: (r["tar"], r["members"][0]["offset"]))
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata({_NEXT_NUMBER: str(number)}))
    write_table(folder / INDEX_NAME, index)  # the commit point
    card = dataset_card(folder.name, rows).encode()
    if not (folder / "README.md").is_file() or (folder / "README.md").read_bytes() != card:
        write_atomic(folder / "README.md", card)
    published = {r["tar"] for r in rows}
    for path in folder.glob("*.tar"):  # old tars go last, so that a reader of either index finds its files
        if path.name not in published:
            path.unlink()
    return index


def _old_index(folder: Path) -> list[dict]:
    return read_index(folder).to_pylist() if (folder / INDEX_NAME).is_file() else []


def _next_number(folder: Path, old: Sequence[dict]) -> int:
    """The first number that no published tar ever had. Tars that no index ever named, left by a kill, do not count."""
    if not (folder / INDEX_NAME).is_file():
        return 0
    known = (read_index(folder).schema.metadata or {}).get(_NEXT_NUMBER)
    return int(known) if known else 1 + max((int(r["tar"].rsplit("-", 1)[1].removesuffix(".tar")) for r in old), default=-1)


def _tars_still_good(folder: Path, old: Sequence[dict], wanted: Mapping[str, SampleFiles]) -> set[str]:
    """Tars that are there, whole, and whose every sample is wanted as it is."""
    ends: dict[str, int] = defaultdict(int)
    for r in old:
        ends[r["tar"]] = max(ends[r["tar"]], *(m["offset"] + m["size"] for m in r["members"]))
    by_tar = {tar: (folder / tar).is_file() and (folder / tar).stat().st_size > end for tar, end in ends.items()}
    for r in old:
        sample = wanted.get(r["sample"])
        good = sample is not None and sample_digest(sample.digests) == r["digest"] and sample.info.split == r["split"]
        by_tar[r["tar"]] &= good
    return {tar for tar, good in by_tar.items() if good}


def _groups(samples: Sequence[SampleFiles], max_bytes: int) -> list[list[SampleFiles]]:
    groups: list[list[SampleFiles]] = []
    room = 0
    for sample in samples:
        size = sample.bytes
        if not groups or size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(sample)
        room -= size
    return groups


def _write_tar(path: Path, samples: Sequence[SampleFiles]) -> list[dict]:
    rows = []
    with atomic_file(path) as out:
        for sample in samples:
            members = {"json": sample.info.encode()}
            for name, (file, digest) in sample.files.items():
                members[name] = file.read_bytes() if file.is_file() else b""
                if content_digest(members[name]) != digest:
                    raise ValueError(f"{file}: gone or changed since it was made; `crosspair retry RUN --damaged`, then run again")
            entries = write_tar_sample(out, sample.info.key, members)
            rows.append(_index_row(path.name, sample, entries))
        finish_tar(out)
    return rows


def _index_row(tar: str, sample: SampleFiles, entries: list[dict]) -> dict:
    info = sample.info
    fields = {
        n: getattr(info, n) for n in ("frames", "fps", "size_px", "has_audio", "clip", "portrait", "performer", "appearance", "split")
    }
    digest = sample_digest({e["name"]: e["digest"] for e in entries})
    scores = {n: sample.scores[n] for n in INDEX_SCHEMA.names if n in sample.scores}
    return {"sample": info.key, "tar": tar, "digest": digest, "members": entries, **fields, **scores}
