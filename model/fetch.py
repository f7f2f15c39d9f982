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
from typing import Any, Literal

import numpy as np

from model.cache import Cache
from schemas.files import StorageError
from schemas.ids import checksum, content_digest, digest
from schemas.sample import INDEX_NAME, sample_digest, tar_header, why_unreadable
from schemas.store import DiskStore, Store, open_store

_MAX_BYTES = 1 << 30  # of a sample
_MAX_OFFSET = 1 << 42  # what every file system and store can seek to
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
    store: Store, row: Mapping[str, Any], names: Sequence[str] | None, cache: Cache | None = None, *, check: Check = "checksums"
) -> dict[str, bytes]:
    """Bytes of the named members, or of all, of one row of `model.rows`, held against what the index says of them; what goes into the
    cache, or comes out of it, against checksums at least.

    Raises:
        ValueError: the sample lacks one, the index contradicts itself or the tar, or the tar is gone, ends early or is damaged.
        OSError: the storage fails.
    """
    members = _listed(row, names)
    # A disk of this machine need not be copied to it.
    if cache is None or isinstance(store, DiskStore):
        return _checked(members, _fetch(store, row, members), check)
    kept_as = digest("members", *(m["digest"] for m in members))
    check = "checksums" if check == "headers" else check
    if (kept := cache.get(kept_as)) is not None:
        ends = np.cumsum([m["size"] for m in members])
        try:
            return _checked(members, [kept[end - m["size"] : end] for end, m in zip(ends, members, strict=True)], check)
        except ValueError:  # the cache's damage, not the sample's
            cache.drop(kept_as)
    found = _checked(members, _fetch(store, row, members), check)
    cache.put(kept_as, b"".join(found.values()))
    return found


def _checked(members: Sequence[Mapping[str, Any]], parts: Sequence[bytes], check: Check) -> dict[str, bytes]:
    for m, part in zip(members, parts, strict=True):
        if len(part) != m["size"] or (check != "headers" and not _is_as_listed(part, m, check)):
            raise ValueError(f"{m['name']} holds other bytes than the index says; `crosspair verify` says what is damaged")
    return {m["name"]: part for m, part in zip(members, parts, strict=True)}


def _is_as_listed(data: bytes, member: Mapping[str, Any], check: Check) -> bool:
    if check == "digests" or member["checksum"] is None:  # an older run's
        return content_digest(data) == member["digest"]
    return checksum(data) == member["checksum"]


def _listed(row: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The index's entries of the named members, in their order in the tar; they lie where a tar's can."""
    if not row["members"]:
        raise ValueError("the index leaves out what it should say of its members")
    entries = sorted(row["members"], key=lambda m: m["offset"])
    by_name = {m["name"]: m for m in entries}
    missing = set(names or ()) - set(by_name)
    if missing:
        raise ValueError(f"members {sorted(missing)} are missing")
    if len(by_name) < len(entries) or sample_digest({n: m["digest"] for n, m in by_name.items()}) != row["digest"]:
        raise ValueError("its members are not those that its digest in the index was made of")
    wanted = entries if names is None else [m for m in entries if m["name"] in names]
    end = 0
    for m in wanted:
        if m["size"] < 0 or m["offset"] < end + tarfile.BLOCKSIZE:
            raise ValueError(f"the index says that {m['name']} has {m['size']} bytes from {m['offset']} on, which cannot be")
        end = m["offset"] + m["size"]
    if end > _MAX_OFFSET or end - wanted[0]["offset"] > _MAX_BYTES:
        raise ValueError(f"the index says that it takes {end - wanted[0]['offset']} bytes and ends at {end}, which cannot be")
    return wanted


def _fetch(store: Store, row: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """What the tar holds where the index says so, with the headers before it."""
    headers = [(m["offset"] - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE) for m in members]
    places = [(m["offset"], m["size"]) for m in members]
    try:
        read = store.read_ranges(row["tar"], [*headers, *places])
    except StorageError:
        raise
    except _NO_SUCH_FILE as e:
        if store.size(INDEX_NAME) < 0:
            raise StorageError(errno.ENOENT, "the pair set's folder was there before and is not now", str(store)) from e
        raise ValueError(_why_gone(str(store), row["tar"], e.errno or errno.ENOENT)) from e
    except OSError as e:
        raise StorageError(e.errno or 0, e.strerror or str(e), store.at(row["tar"])) from e
    parts = read[len(members) :]
    for m, header, part in zip(members, read, parts, strict=False):
        name = f"{row['sample']}.{m['name']}"
        if header != tar_header(name, m["size"]):
            raise ValueError(f"the tar {_holds(header)} where the index says {name} of {m['size']} bytes")
        if len(part) < m["size"]:
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
