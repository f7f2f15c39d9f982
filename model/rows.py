"""Rows: a pair set's index in memory, of which any row is found in microseconds: less than reading its sample takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Rows:
    """What reading a sample takes, of an index.

    Args:
        index: as `schemas.sample.read_index` returns it, without nulls but those of scores and those within `members`.
    """

    def __init__(self, index: pa.Table) -> None:
        self._sample, self._tar, self._digest = index["sample"], Words(index["tar"]), index["digest"]
        self._frames, self._size_px = numbers(index["frames"]), numbers(index["size_px"])
        members = index["members"]
        self._first = np.concatenate([[0], np.cumsum(numbers(pc.list_value_length(members)))])
        flat = pc.list_flatten(members)
        name, offset, size, self._member_digest = (pc.struct_field(flat, field) for field in ("name", "offset", "size", "digest"))
        self._name, self._offset, self._size = Words(name), numbers(offset), numbers(size)
        has_checksums = "checksum" in {field.name for field in flat.type}
        checksum = pc.struct_field(flat, "checksum") if has_checksums else pa.chunked_array([pa.nulls(len(flat), pa.uint64())])
        self._checksum, self._has_checksum = numbers(checksum), ~_empty(checksum)
        # Arrays of numbers cannot say that something is left out.
        gaps = np.flatnonzero(np.any([_empty(column) for column in (name, offset, size, self._member_digest)], axis=0))
        self._with_gaps = set((np.searchsorted(self._first, gaps, side="right") - 1).tolist())

    def row(self, number: int) -> dict[str, Any]:
        """The row, with its members as dictionaries in their order, or None where the index leaves out something of one of them. A
        member's `checksum` may be None."""
        return {
            "sample": self._sample[number].as_py(),
            "tar": self._tar.of(number, number + 1)[0],
            "digest": self._digest[number].as_py(),
            "frames": int(self._frames[number]),
            "size_px": int(self._size_px[number]),
            "members": None if number in self._with_gaps else self._members(number),
        }

    def _members(self, number: int) -> list[dict[str, Any]]:
        a, b = int(self._first[number]), int(self._first[number + 1])
        names, digests = self._name.of(a, b), self._member_digest.slice(a, b - a).to_pylist()
        checksums = [c if there else None for c, there in zip(self._checksum[a:b].tolist(), self._has_checksum[a:b].tolist(), strict=True)]
        return [
            {"name": name, "offset": offset, "size": size, "digest": digest, "checksum": checksum}
            for name, offset, size, digest, checksum in zip(
                *(names, self._offset[a:b].tolist(), self._size[a:b].tolist(), digests, checksums), strict=True
            )
        ]


class Words:
    """A column of few different texts: which there are, and the number of each row's among them, 0 for none."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        encoded = column.dictionary_encode().unify_dictionaries()
        self.words: list[str] = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
        self.codes = numbers(pa.chunked_array([chunk.indices for chunk in encoded.chunks], pa.int32()))

    def of(self, first: int, end: int) -> list[str]:
        return [self.words[code] for code in self.codes[first:end].tolist()]


# Pyarrow's own ways to numpy and back import pandas, which takes longer than all else that a stream does before its first window.


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers; 0 for none."""
    zero = pa.Array.from_buffers(column.type, 1, [None, pa.py_buffer(bytes(8))])[0]
    parts = [np.from_dlpack(pc.fill_null(chunk, zero) if chunk.null_count else chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def arrow(array: np.ndarray) -> pa.Array:
    """Whole numbers of a numpy array, int64."""
    return pa.Array.from_buffers(pa.int64(), len(array), [None, pa.py_buffer(np.ascontiguousarray(array, np.int64))])


def _empty(column: pa.ChunkedArray) -> np.ndarray:
    """Where a column has no value."""
    return numbers(pc.is_null(column).cast(pa.uint8())).astype(bool)
