"""Fetch: the bytes of one sample, by one read of one stretch of its tar. Nothing that index or tar say is taken on trust.

A ValueError is about this sample alone. An OSError is about the storage: nothing is known about the sample then.
"""

from __future__ import annotations

import errno
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from model.cache import Cache
from model.rows import Member, Row
from schemas.files import StorageError
from schemas.ids import checksum, content_digest, digest
from schemas.sample import INDEX_NAME, sample_digest, tar_header, why_unreadable
from schemas.store import DiskStore, Store, open_store

_FILE_NAME = re.compile(r"[^./\\\0][^/\\\0]*")
_MAX_NAME_BYTES = 255
_LARGEST_BLOCK = 31 << 20  # 32 MiB with what is kept beside it: larger ones change nothing
_NO_SUCH_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

Check = Literal["checksums", "digests", "headers"]
"""What bytes are held against. Headers alone: each member is the one that the index names, of its size and at its place."""


def keep_freed_memory() -> None:
    """Frees one large block, after which glibc keeps up to twice as much of what is freed for the next sample. Else it gives it back to the
    system, and to get it anew, zeroed page by page, takes a quarter of the time of reading; a window's pictures would do the same later."""
    _ = bytes(_LARGEST_BLOCK)


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file beside the index, and leads nowhere else."""
    return _FILE_NAME.fullmatch(name) is not None and len(name.encode()) <= _MAX_NAME_BYTES


def fetch_members(
    store: Store, row: Row, names: Sequence[str] | None, cache: Cache | None = None, *, check: Check = "checksums"
) -> dict[str, bytes]:
    """Bytes of the named members, or of all, of one row, held against what the index says of them; what goes into the
    cache, or comes out of it, against checksums at least.

    Raises:
        ValueError: the sample lacks one, the index contradicts itself or the tar, or the tar is gone, ends early or is damaged.
        OSError: the storage fails.
    """
    members = _listed(row, names)
    # A disk of this machine need not be copied to it.
    kept_as = _name_of(row, members) if cache and not isinstance(store, DiskStore) else ""
    if not kept_as and check == "headers":
        return _by_name(members, _fetch(store, row, members))
    digests = _digests(row) if check == "digests" or any(m.checksum is None for m in members) else {}
    if cache is None or not kept_as:
        return _checked(members, _fetch(store, row, members), digests)
    if (kept := cache.get(kept_as)) is not None:
        ends = np.cumsum([m.size for m in members])
        try:
            return _checked(members, [kept[end - m.size : end] for end, m in zip(ends, members, strict=True)], digests)
        except ValueError:  # the cache's damage, not the sample's
            cache.drop(kept_as)
    found = _checked(members, _fetch(store, row, members), digests)
    cache.put(kept_as, b"".join(found.values()))
    return found


def _name_of(row: Row, members: Sequence[Member]) -> str:
    """What the members' bytes are kept as."""
    digests = row.digests()
    return digest("members", *(digests[m.name] for m in members))


def _digests(row: Row) -> dict[str, str]:
    """Of the row's members, held against the sample's, which the stream's is made of."""
    digests = row.digests()
    if sample_digest(digests) != row.digest():
        raise ValueError("its members are not those that its digest in the index was made of")
    return digests


def _checked(members: Sequence[Member], parts: Sequence[bytes], digests: Mapping[str, str]) -> dict[str, bytes]:
    """By digests where there are some, else by checksums."""
    for m, part in zip(members, parts, strict=True):
        right = content_digest(part) == digests[m.name] if digests else checksum(part) == m.checksum
        if len(part) != m.size or not right:
            raise ValueError(f"{m.name} holds other bytes than the index says; `crosspair verify` says what is damaged")
    return _by_name(members, parts)


def _by_name(members: Sequence[Member], parts: Sequence[bytes]) -> dict[str, bytes]:
    return {m.name: part for m, part in zip(members, parts, strict=True)}


def _listed(row: Row, names: Sequence[str] | None) -> list[Member]:
    """The index's entries of the named members, or of all, in their order in the tar."""
    if row.members is None:
        raise ValueError("the index says that its members lie where they cannot; `crosspair verify` says what is damaged")
    there = {m.name for m in row.members}
    if len(there) < len(row.members):
        raise ValueError("the index has a member twice")
    if missing := set(names or ()) - there:
        raise ValueError(f"members {sorted(missing)} are missing")
    return row.members if names is None else [m for m in row.members if m.name in names]


def _fetch(store: Store, row: Row, members: Sequence[Member]) -> list[bytes]:
    """What the tar holds where the index says so, with the headers before it."""
    headers = [(m.offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE) for m in members]
    places = [(m.offset, m.size) for m in members]
    try:
        read = store.read_ranges(row.tar, [*headers, *places])
    except StorageError:
        raise
    except _NO_SUCH_FILE as e:
        if store.size(INDEX_NAME) < 0:
            raise StorageError(errno.ENOENT, "the pair set's folder was there before and is not now", str(store)) from e
        raise ValueError(_why_gone(str(store), row.tar, e.errno or errno.ENOENT)) from e
    except OSError as e:
        raise StorageError(e.errno or 0, e.strerror or str(e), store.at(row.tar)) from e
    parts = read[len(members) :]
    for m, header, part in zip(members, read, parts, strict=False):
        name = f"{row.sample}.{m.name}"
        if header != tar_header(name, m.size):
            raise ValueError(f"the tar {_holds(header)} where the index says {name} of {m.size} bytes")
        if len(part) < m.size:
            raise ValueError(f"the tar has ended within {name}")
    return parts


def _holds(header: bytes) -> str:
    """What a member's header says, for a message."""
    if len(header) < tarfile.BLOCKSIZE:
        return "has ended"
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
        return f"holds {found.name!r} of {found.size} bytes"
    except tarfile.HeaderError:
        return "holds no member"


@lru_cache(maxsize=64)  # it takes reading the index, and a tar has many samples
def _why_gone(place: str, tar: str, number: int) -> str:
    return why_unreadable(open_store(place), tar, OSError(number, os.strerror(number)))  # of the subclass that the number names
