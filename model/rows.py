"""Rows: a pair set's index in memory, of which any row is found in microseconds: less than reading its sample takes."""

from __future__ import annotations

import tarfile
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MAX_BYTES = 1 << 30  # of a sample
_MAX_OFFSET = 1 << 42  # what every file system and store can seek to
_64_BITS = (1 << 64) - 1


class Member(NamedTuple):
    """As the index has it, true or not."""

    name: str
    offset: int
    size: int
    checksum: int | None  # an older run's index has none


class Row(NamedTuple):
    """What the index says of a sample that reading it takes, true or not."""

    sample: str
    tar: str
    frames: int
    size_px: int
    members: list[Member] | None  # in their order in the tar; None where the index says what cannot be
    rows: Rows
    number: int

    def digest(self) -> str:
        """Of the sample."""
        digest: str = self.rows.digest[self.number].as_py()
        return digest

    def digests(self) -> dict[str, str]:
        """Of its members, by name."""
        assert self.members is not None
        first = int(self.rows.first[self.number])
        digests = self.rows.member_digest.slice(first, len(self.members)).to_pylist()
        return {m.name: digest for m, digest in zip(self.members, digests, strict=True)}


class Rows:
    """An index.

    Args:
        index: as `schemas.sample.read_index` returns it.
    """

    def __init__(self, index: pa.Table) -> None:
        self._tar, self.digest = Words(index["tar"]), index["digest"]
        self._frames, self._size_px = numbers(index["frames"]), numbers(index["size_px"])
        members = index["members"]
        self.first = np.concatenate([[0], np.cumsum(numbers(pc.list_value_length(members)))])
        flat = pc.list_flatten(members)
        name, offset, size, self.member_digest = (pc.struct_field(flat, field) for field in ("name", "offset", "size", "digest"))
        has_checksums = "checksum" in {field.name for field in flat.type}
        checksum = pc.struct_field(flat, "checksum") if has_checksums else pa.chunked_array([pa.nulls(len(flat), pa.uint64())])
        # None: all have
        self._has_checksum = numbers(pc.is_valid(checksum).cast(pa.uint8())).astype(bool) if checksum.null_count else None
        words = Words(name)
        self._names = words.words
        # In one table, of which a few rows are had at once.
        self._members = np.empty((len(flat), 4), np.int64)
        self._members[:, 0], self._members[:, 1], self._members[:, 2] = words.codes, numbers(offset), numbers(size)
        self._members[:, 3] = numbers(checksum).view(np.int64)
        self._impossible = set(_impossible(self.first, self._members[:, 1], self._members[:, 2]).tolist())

    def row(self, number: int, sample: str) -> Row:
        """`sample` is its key."""
        members = None if number in self._impossible else self._of(int(self.first[number]), int(self.first[number + 1]))
        tar = self._tar.words[self._tar.codes[number]]
        return Row(sample, tar, int(self._frames[number]), int(self._size_px[number]), members, self, number)

    def _of(self, first: int, end: int) -> list[Member]:
        names = self._names
        members = [Member(names[name], offset, size, c & _64_BITS) for name, offset, size, c in self._members[first:end].tolist()]
        if self._has_checksum is None:
            return members
        return [m if there else m._replace(checksum=None) for m, there in zip(members, self._has_checksum[first:end].tolist(), strict=True)]


def _impossible(first: np.ndarray, offset: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Rows whose members cannot lie in a tar where they are said to, or of which there are none; int64.

    `first` is that of each row's members, and behind the last row their number; the others have a value a member.
    """
    nowhere = (size < 0) | (size > _MAX_BYTES) | (offset < tarfile.BLOCKSIZE) | (offset > _MAX_OFFSET)
    end = np.where(nowhere, 0, offset + size)  # what overflows is nowhere
    follows = np.ones(len(offset), bool)
    follows[first[:-1][first[:-1] < len(offset)]] = False
    nowhere[1:] |= follows[1:] & (offset[1:] < end[:-1] + tarfile.BLOCKSIZE)
    of_rows = np.unique(np.searchsorted(first, np.flatnonzero(nowhere), side="right") - 1)
    there = np.flatnonzero(np.diff(first))
    too_long = there[end[first[there + 1] - 1] - offset[first[there]] > _MAX_BYTES]
    return np.concatenate([of_rows, np.flatnonzero(np.diff(first) == 0), too_long])


class Words:
    """A column of few different texts: which there are, and the number of each row's among them."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        encoded = column.dictionary_encode().unify_dictionaries()
        self.words: list[str] = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
        self.codes = numbers(pa.chunked_array([chunk.indices for chunk in encoded.chunks], pa.int32()))


# Pyarrow's own ways to numpy and back import pandas, which takes longer than all else that a stream does before its first window.


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers; 0 for none."""
    zero = pa.Array.from_buffers(column.type, 1, [None, pa.py_buffer(bytes(8))])[0]
    parts = [np.from_dlpack(pc.fill_null(chunk, zero) if chunk.null_count else chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def arrow(array: np.ndarray) -> pa.Array:
    """Whole numbers of a numpy array, int64."""
    return pa.Array.from_buffers(pa.int64(), len(array), [None, pa.py_buffer(np.ascontiguousarray(array, np.int64))])
