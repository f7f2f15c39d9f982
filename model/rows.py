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
        self._sample, self._tar, self._digest = index["sample"], _Words(index["tar"]), index["digest"]
        self._frames, self._size_px = index["frames"].to_numpy(), index["size_px"].to_numpy()
        members = index["members"]
        self._first = np.concatenate([[0], np.cumsum(pc.list_value_length(members).to_numpy())])
        flat = pc.list_flatten(members)
        name, offset, size, self._member_digest = (pc.struct_field(flat, field) for field in ("name", "offset", "size", "digest"))
        self._name = _Words(name)
        self._offset, self._size = (pc.fill_null(column, 0).to_numpy() for column in (offset, size))
        has_checksums = "checksum" in {field.name for field in flat.type}
        checksum = pc.struct_field(flat, "checksum") if has_checksums else pa.chunked_array([pa.nulls(len(flat), pa.uint64())])
        self._checksum, self._has_checksum = pc.fill_null(checksum, 0).to_numpy(), pc.is_valid(checksum).to_numpy()
        # Arrays of numbers cannot say that something is left out.
        gaps = np.flatnonzero(np.any([pc.is_null(column).to_numpy() for column in (name, offset, size, self._member_digest)], axis=0))
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


class _Words:
    """A column of few different texts."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        encoded = column.dictionary_encode().unify_dictionaries()
        self._words = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
        indices = [pc.fill_null(chunk.indices, 0).to_numpy() for chunk in encoded.chunks]
        self._codes = np.concatenate(indices) if indices else np.zeros(0, np.int32)

    def of(self, first: int, end: int) -> list[str]:
        return [self._words[code] for code in self._codes[first:end].tolist()]
