"""Latents beside the shards: the format of RUN/shards/SET/latents, and what keeps it in step with the set. Nothing is encoded here.

    SET/latents/SPLIT-000000.tar   KEY.latents.safetensors, one a sample; a published tar is never rewritten, numbers are never reused
    SET/latents/index.parquet      the commit point: which member holds which sample's latents, of which bytes of it, by which codec

They derive from the samples: where the set's index loses one, `prune` takes its latents away.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from schemas.files import StorageError
from schemas.ids import content_digest
from schemas.sample import INDEX_NAME, finish_tar, parquet_bytes, read_parquet, tar_frame, write_tar_member
from schemas.store import Store

FOLDER = "latents"  # in a pair set's
MEMBER = "latents.safetensors"
FORMAT = "crosspair.latents/1"
STILL = -1  # instead of the number of a target frame: the sample's source.png
INDEX_SCHEMA = pa.schema(
    [
        ("sample", pa.string()),
        ("sample_digest", pa.string()),  # of the sample that was encoded, as the set's index has it
        ("split", pa.string()),
        ("tar", pa.string()),  # file name beside this index
        ("frames", pa.int32()),
        ("offset", pa.int64()),  # of the member's data in the tar, not of its header
        ("size", pa.int64()),
        ("digest", pa.string()),  # of the member
    ]
)
_ABOUT, _NEXT_NUMBER = b"crosspair.latents", b"crosspair.next_tar"  # in the index's metadata
_CHECKSUM_BYTES = 4
_REMEDY = f"take the folder {FOLDER}/ away, then `crosspair latents` makes it anew"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EncodedBy:
    """What latents are of. Those of two different ones are never to be mixed."""

    codec: str  # its name
    fingerprint: str  # of its weights and settings
    frame_px: int  # side of the pictures that were encoded
    channels: int
    side: int  # latent rows, and columns
    format: str = FORMAT


@dataclass(frozen=True)
class LatentsIndex:
    """`rows` are of INDEX_SCHEMA, by tar and offset. `next_tar` is the first number that no published tar ever had."""

    codec: EncodedBy
    rows: Sequence[Row] = ()
    next_tar: int = 0

    def encode(self) -> bytes:
        rows = sorted(self.rows, key=lambda r: (r["tar"], r["offset"]))
        metadata = {_ABOUT: json.dumps(asdict(self.codec), sort_keys=True), _NEXT_NUMBER: str(self.next_tar)}
        return parquet_bytes(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata(metadata)))


def read_latents_index(folder: Store) -> LatentsIndex | None:
    """The index in SET/latents; None where there is none. Raises ValueError for a damaged one, or one of another major format."""
    if folder.size(INDEX_NAME) < 0:
        return None
    where = folder.at(INDEX_NAME)
    table = read_parquet(folder.read(INDEX_NAME), where, INDEX_SCHEMA, _REMEDY)
    try:
        metadata = table.schema.metadata or {}
        about, number = json.loads(metadata[_ABOUT]), int(metadata[_NEXT_NUMBER])
        if about["format"] != FORMAT:
            raise ValueError(f"{where}: the format is {about['format']!r}, this version knows {FORMAT!r}: use the one that wrote it")
        return LatentsIndex(EncodedBy(**about), table.to_pylist(), number)
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise ValueError(f"{where}: does not say what its latents are of: {e!r}; {_REMEDY}") from e


# --- one sample's member


class Layout(NamedTuple):
    """Where things lie in a member: header, a checksum of each picture, the still, the target's frames.

    Everything follows from the sizes, so that a reader of a window needs no more of a member than the window.
    """

    head: bytes
    frames: int
    row_bytes: int  # of the latents of one picture

    def checksum(self, picture: int) -> int:
        """Offset of a picture's checksum; `picture` is the number of a target frame, or STILL."""
        return len(self.head) + _CHECKSUM_BYTES * (picture + 1)

    def row(self, picture: int) -> int:
        """Offset of a picture's latents."""
        return self.checksum(self.frames) + self.row_bytes * (picture + 1)

    @property
    def size(self) -> int:
        return self.row(self.frames)


def layout(codec: EncodedBy, frames: int) -> Layout:
    shape = [codec.channels, codec.side, codec.side]
    row_bytes = 2 * int(np.prod(shape))
    tensors, end = {}, 0
    sizes = [("checksums", "U32", [frames + 1], _CHECKSUM_BYTES * (frames + 1)), ("still", "F16", shape, row_bytes)]
    for name, dtype, of_shape, size in [*sizes, ("target", "F16", [frames, *shape], row_bytes * frames)]:
        tensors[name] = {"dtype": dtype, "shape": of_shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": FORMAT}, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Layout(len(text).to_bytes(8, "little") + text, frames, row_bytes)


def checksum(key: str, picture: int, latents: bytes) -> int:
    """CRC-32 of a picture's latents after that of its name, so that neither damage nor another picture's go unnoticed."""
    return zlib.crc32(latents, zlib.crc32(f"{key}.{picture}".encode()))


def encode_latents(key: str, codec: EncodedBy, latents: np.ndarray) -> bytes:
    """KEY.latents.safetensors, from those of the still and of all target frames, float16 (1 + T, C, H, W).

    Raises:
        ValueError: some are no finite numbers.
    """
    assert latents.dtype == np.float16 and latents.shape[1:] == (codec.channels, codec.side, codec.side), (latents.dtype, latents.shape)
    if not np.isfinite(latents).all():
        raise ValueError("some latents are no finite numbers of 16 bits")
    rows = [row.astype("<f2", copy=False).tobytes() for row in latents]
    checksums = np.array([checksum(key, i - 1, row) for i, row in enumerate(rows)], "<u4")
    return b"".join([layout(codec, len(rows) - 1).head, checksums.tobytes(), *rows])


def read_latents(folder: Store, codec: EncodedBy, row: Mapping, first: int, count: int, source_frame: int) -> np.ndarray:
    """Latents of target frames `first` .. `first + count - 1`, and then of `source_frame`: float16 (count + 1, C, H, W).

    Only these are read, and checked by their checksums; the digest of the whole member is `crosspair verify`'s.

    Args:
        folder: SET/latents.
        row: of its index.
        source_frame: a frame of the target, or STILL.

    Raises:
        FileNotFoundError: the tar is gone.
        ValueError: damage; names the tar.
    """
    frames = row["frames"]
    assert first >= 0 and 0 < count <= frames - first and STILL <= source_frame < frames, (first, count, source_frame, frames)
    at, key = layout(codec, frames), row["sample"]
    pictures = [*range(first, first + count), source_frame]
    ranges = [(at.checksum(first), _CHECKSUM_BYTES * count), (at.checksum(source_frame), _CHECKSUM_BYTES)]
    ranges += [(at.row(first), at.row_bytes * count), (at.row(source_frame), at.row_bytes)]
    parts = folder.read_ranges(row["tar"], [(row["offset"] + offset, size) for offset, size in ranges])
    if [len(p) for p in parts] == [size for _, size in ranges]:
        checksums, data = np.frombuffer(parts[0] + parts[1], "<u4"), parts[2] + parts[3]
        rows = [data[i * at.row_bytes :][: at.row_bytes] for i in range(len(pictures))]
        if [checksum(key, p, r) for p, r in zip(pictures, rows, strict=True)] == checksums.tolist():
            return np.frombuffer(data, "<f2").reshape(-1, codec.channels, codec.side, codec.side)
    where = folder.at(row["tar"])
    raise ValueError(f"{where}: latents of {key} are damaged; take this tar away, then `crosspair latents` makes its latents anew")


# --- tars and their index


def write_member(out: BinaryIO, key: str, data: bytes) -> tuple[int, int, str]:
    """Appends a sample's member to an open tar; returns the index's offset, size and digest."""
    return write_tar_member(out, f"{key}.{MEMBER}", data), len(data), content_digest(data)


def publish(folder: Store, index: LatentsIndex) -> None:
    """Makes `index` that of SET/latents, then takes away the tars that it does not name: readers of either find their files."""
    data = index.encode()
    if folder.size(INDEX_NAME) != len(data) or folder.read(INDEX_NAME) != data:
        folder.write(INDEX_NAME, data)
    clear_unnamed(folder, index)


def clear_unnamed(folder: Store, index: LatentsIndex | None) -> None:
    """Takes away tars that no index names: those of killed processes. They may show anybody."""
    named = {r["tar"] for r in index.rows} if index else set()
    folder.delete([tar for tar in folder.names("", ".tar") if tar not in named])


def prune(pair_set: Store, digests: Mapping[str, str], say: Callable[[str], None] = lambda _: None) -> int:
    """Takes away the latents of samples that are not there any more, or not with these bytes; how many those were.

    What else stood in their tars goes into tars of new numbers, byte for byte; what is damaged does not. Nothing is there, nothing is done.

    Args:
        pair_set: the set's folder.
        digests: sample -> digest, as the set's index has them.

    Raises:
        ValueError: the index of latents is damaged.
    """
    folder = pair_set.sub(FOLDER)
    index = read_latents_index(folder)
    if index is None:
        clear_unnamed(folder, None)
        return 0
    touched = {r["tar"] for r in index.rows if digests.get(r["sample"]) != r["sample_digest"]}
    kept = [r for r in index.rows if r["tar"] not in touched]
    for tar in sorted(touched):
        rows = [r for r in index.rows if r["tar"] == tar and digests.get(r["sample"]) == r["sample_digest"]]
        moved = _moved(folder, rows, index.next_tar, say)
        if moved:
            index = replace(index, next_tar=index.next_tar + 1)
        kept += moved
    gone = len(index.rows) - len(kept)
    publish(folder, replace(index, rows=kept))
    return gone


def _moved(folder: Store, rows: Sequence[Row], number: int, say: Callable[[str], None]) -> list[Row]:
    """Copies members into one new tar; their rows. None is written where nothing whole is left."""
    whole = [r for r in rows if _member(folder, r, say) is not None]
    if not whole:
        return []
    tar = tar_name(whole[0]["split"], number)
    with folder.writing(tar) as out:
        moved = []
        for r in whole:
            data = _member(folder, r, say)
            assert data is not None, "it was whole a moment ago"
            offset, _, _ = write_member(out, r["sample"], data)
            moved.append({**r, "tar": tar, "offset": offset})
        finish_tar(out)
    return moved


def _member(folder: Store, row: Row, say: Callable[[str], None]) -> bytes | None:
    """A member's bytes; None, and a word, for one that is damaged."""
    try:
        [data] = folder.read_ranges(row["tar"], [(row["offset"], row["size"])])
    except StorageError:
        raise
    except OSError:
        data = b""
    if content_digest(data) == row["digest"]:
        return data
    say(f"{folder.at(row['tar'])}: latents of {row['sample']} are damaged and left out; `crosspair latents` makes them anew")
    return None


def tar_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def whole_tars(folder: Store, index: LatentsIndex) -> set[str]:
    """Tars of the index that are there and not cut off. Their content is not looked at."""
    ends: dict[str, int] = {}
    for r in index.rows:
        ends[r["tar"]] = max(ends.get(r["tar"], 0), r["offset"] + r["size"])
    return {tar for tar, end in ends.items() if folder.size(tar) > end}


def tar_problems(folder: Store, tar: str, rows: Iterable[Row]) -> list[str]:
    """What is wrong with a tar of the index, a sentence each: every byte of it is looked at."""
    where, ordered = folder.at(tar), sorted(rows, key=lambda r: r["offset"])
    try:
        data = folder.read(tar)
    except FileNotFoundError:
        return [f"{where}: missing, though the index of latents names it; `crosspair latents` makes it anew"]
    remedy = "take this tar away, then `crosspair latents` makes its latents anew"
    problems = [
        f"{where}: {r['sample']}.{MEMBER} does not have its digest; {remedy}"
        for r in ordered
        if content_digest(data[r["offset"] : r["offset"] + r["size"]]) != r["digest"]
    ]
    end = 0
    for what, offset, expected in tar_frame([(f"{r['sample']}.{MEMBER}", r["size"]) for r in ordered]):
        end = offset + len(expected)
        if data[offset:end] != expected:
            return [*problems, f"{where}: {what} is not as it was written; {remedy}"]
    return [*problems, f"{where}: goes on behind its end; {remedy}"] if len(data) > end else problems
