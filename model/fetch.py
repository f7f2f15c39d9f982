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
from typing import Any

import numpy as np

from model.cache import Cache
from schemas.files import StorageError
from schemas.ids import content_digest, digest
from schemas.sample import INDEX_NAME, sample_digest, tar_header, why_unreadable
from schemas.store import DiskStore, Store, open_store

_MAX_BYTES = 1 << 30  # of a sample
_MAX_OFFSET = 1 << 42  # what every file system and store can seek to
_FILE_NAME = re.compile(r"[^./\\\0][^/\\\0]*")
_MAX_NAME_BYTES = 255
_NO_SUCH_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file beside the index, and leads nowhere else."""
    return _FILE_NAME.fullmatch(name) is not None and len(name.encode()) <= _MAX_NAME_BYTES


def fetch_members(
    store: Store, row: Mapping[str, Any], names: Sequence[str], cache: Cache | None = None, *, digests: bool = True
) -> dict[str, bytes]:
    """Bytes of the named members of one index row, each with the digest that the index gives it, unless these are not asked for and
    nothing goes into the cache.

    Raises:
        ValueError: the sample lacks one, the index contradicts itself or the tar, or the tar is gone, ends early or is damaged.
        OSError: the storage fails.
    """
    members = _listed(row, names)
    # A disk of this machine need not be copied to it.
    kept_as = digest("members", *(m["digest"] for m in members)) if cache is not None and not isinstance(store, DiskStore) else ""
    if cache is not None and kept_as and (kept := cache.get(kept_as)) is not None:
        ends = np.cumsum([m["size"] for m in members])
        try:
            return _checked(members, [kept[end - m["size"] : end] for end, m in zip(ends, members, strict=True)])
        except ValueError:  # the cache's damage, not the sample's
            cache.drop(kept_as)
    parts = _fetch(store, row, members)
    found = _checked(members, parts) if digests or kept_as else {m["name"]: part for m, part in zip(members, parts, strict=True)}
    if cache is not None and kept_as:
        cache.put(kept_as, b"".join(found.values()))
    return found


def _checked(members: Sequence[Mapping[str, Any]], parts: Sequence[bytes]) -> dict[str, bytes]:
    for m, part in zip(members, parts, strict=True):
        if len(part) != m["size"] or content_digest(part) != m["digest"]:
            raise ValueError(f"{m['name']} does not have its digest; `crosspair verify` says what is damaged")
    return {m["name"]: part for m, part in zip(members, parts, strict=True)}


def _listed(row: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The index's entries of the named members, in their order in the tar; they lie where a tar's can."""
    if any(m is None or None in m.values() for m in row["members"]):
        raise ValueError("the index leaves out what it should say of a member")
    entries = sorted(row["members"], key=lambda m: m["offset"])
    by_name = {m["name"]: m for m in entries}
    missing = set(names) - set(by_name)
    if missing:
        raise ValueError(f"members {sorted(missing)} are missing")
    if len(by_name) < len(entries) or sample_digest({n: m["digest"] for n, m in by_name.items()}) != row["digest"]:
        raise ValueError("its members are not those that its digest in the index was made of")
    wanted = [m for m in entries if m["name"] in names]
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
    start = members[0]["offset"] - tarfile.BLOCKSIZE
    end = members[-1]["offset"] + members[-1]["size"]
    try:
        stretch = store.read_ranges(row["tar"], [(start, end - start)])[0]
    except StorageError:
        raise
    except _NO_SUCH_FILE as e:
        if store.size(INDEX_NAME) < 0:
            raise StorageError(errno.ENOENT, "the pair set's folder was there before and is not now", str(store)) from e
        raise ValueError(_why_gone(str(store), row["tar"], e.errno or errno.ENOENT)) from e
    except OSError as e:
        raise StorageError(e.errno or 0, e.strerror or str(e), store.at(row["tar"])) from e
    parts = []
    for m in members:
        name, at = f"{row['sample']}.{m['name']}", m["offset"] - start
        header = stretch[at - tarfile.BLOCKSIZE : at]
        if header != tar_header(name, m["size"]):
            raise ValueError(f"the tar {_holds(header)} where the index says {name} of {m['size']} bytes")
        part = stretch[at : at + m["size"]]
        if len(part) < m["size"]:
            raise ValueError(f"the tar has ended within {name}")
        parts.append(part)
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
