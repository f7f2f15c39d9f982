"""Objects: files of the user's own in S3, by their URIs. They are looked at, listed and fetched, and never written.

A key is taken as it is: nothing in it is escaped, and `a//b` is another key than `a/b`.
"""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from schemas.files import StorageError, own_storage
from schemas.store import ObjectStore, error_code

_BUCKET = re.compile(r"[\w.-]{3,255}", re.ASCII)
_MAX_KEY_BYTES = 1024
_PART_BYTES = 32 << 20  # what is in memory of a film that is fetched
_WALKS_AT_ONCE = 16
_KEYS_A_WALK = 1000
_OF_WHO_WE_ARE = frozenset({"ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "AccountProblem"})


class ObjectState(NamedTuple):
    """What the store says of an object. One that is written anew has another."""

    size_bytes: int
    mtime_ns: int  # in whole seconds: a listing may know more than what is said of one object
    etag: str


def is_object(uri: str) -> bool:
    return uri.startswith("s3://")


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of a URI s3://bucket/key; either may be empty."""
    assert is_object(uri), uri
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def object_state(uri: str) -> ObjectState:
    """An object as it is now. Where it may not be looked at, a listing tells as much.

    Raises:
        FileNotFoundError: no such object, or none can have this name.
        PermissionError: neither is allowed. Who may not list is not told whether an object is there, either.
        StorageError: the store fails.
    """
    store, key = _open(uri)
    return _look(store, key)


def object_states(uris: Iterable[str]) -> dict[str, ObjectState]:
    """Those that are there, as they are now: about one request for a thousand that lie side by side.

    Raises:
        StorageError: the store fails.
    """
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for uri in uris:
        bucket, key = split_uri(uri)
        if _can_be(bucket, key):
            keys[bucket].add(key)
    # The stores are made here: a thread of its own would make connections of its own.
    stores = {bucket: ObjectStore(f"s3://{bucket}") for bucket in keys}
    walks = [(stores[b], sorted(ks)[i : i + _KEYS_A_WALK]) for b, ks in keys.items() for i in range(0, len(ks), _KEYS_A_WALK)]
    with ThreadPoolExecutor(_WALKS_AT_ONCE) as pool:
        found = list(pool.map(lambda walk: _walk(*walk), walks))
    return {store.at(key): state for (store, _), states in zip(walks, found, strict=True) for key, state in states.items()}


def list_keys(bucket: str, prefix: str, *, deep: bool = True) -> Iterator[str]:
    """Keys that begin with `prefix`, sorted; without `deep` only those that have no slash behind it.

    Raises:
        FileNotFoundError: no such bucket.
        PermissionError: it may not be listed.
        StorageError: the store fails.
    """
    if not _can_be(bucket, prefix or "any"):
        raise FileNotFoundError(errno.ENOENT, "no bucket, or no object, can have this name", f"s3://{bucket}/{prefix}")
    store, which = ObjectStore(f"s3://{bucket}"), {"Prefix": prefix} | ({} if deep else {"Delimiter": "/"})
    while True:
        page, following = _page(store, **which)
        yield from page
        if not following:
            return
        which["ContinuationToken"] = following


def read_object(uri: str) -> bytes:
    """A whole object. Raises as `object_state`."""
    store, key = _open(uri)
    with _refusals(uri):
        data: bytes = store.ask(key, "get_object")["Body"]
    return data


def fetch_object(uri: str, state: ObjectState, path: Path) -> None:
    """Copies an object that is in this state to a new file, part by part.

    Raises:
        FileNotFoundError, PermissionError: it has gone; it may not be read.
        ValueError: it is in another state by now.
        StorageError: the store fails, or this machine's disk.
    """
    store, key = _open(uri)
    with own_storage(path.parent, path), path.open("xb") as f:
        for first in range(0, state.size_bytes, _PART_BYTES):
            stop = min(first + _PART_BYTES, state.size_bytes)
            with _refusals(uri):
                part: bytes = store.ask(key, "get_object", IfMatch=state.etag, Range=f"bytes={first}-{stop - 1}")["Body"]
            if len(part) != stop - first:
                raise StorageError(0, f"{len(part)} bytes came of {stop - first}", uri)
            f.write(part)


def _open(uri: str) -> tuple[ObjectStore, str]:
    bucket, key = split_uri(uri)
    if not _can_be(bucket, key):
        raise FileNotFoundError(errno.ENOENT, "no object can have this name", uri)
    return ObjectStore(f"s3://{bucket}"), key


def _can_be(bucket: str, key: str) -> bool:
    """Whether an object can have this name; S3 answers to others as to a bad moment, and those are waited for."""
    return _BUCKET.fullmatch(bucket) is not None and 0 < len(key.encode("utf-8", "surrogatepass")) <= _MAX_KEY_BYTES


def _look(store: ObjectStore, key: str) -> ObjectState:
    try:
        with _refusals(store.at(key)):
            answer = store.ask(key, "head_object")
        return _state(answer, answer["ContentLength"])
    except PermissionError:
        page, _ = _page(store, Prefix=key, MaxKeys=1)  # the first with this beginning is the key itself
        if key not in page:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), store.at(key)) from None
        return page[key]


def _walk(store: ObjectStore, keys: list[str]) -> dict[str, ObjectState]:
    """The states of sorted keys: a page that begins at the first tells of all that it reaches, then one is asked for at the next."""
    found: dict[str, ObjectState] = {}
    try:
        while keys:
            page, more = _page(store, StartAfter=_just_before(keys[0]))
            last = max(page, default="")
            reached = sum(k <= last for k in keys) if more else len(keys)
            assert reached, f"{store}: a listing from {keys[0]!r} on came no farther than {last!r}"
            found |= {k: page[k] for k in keys[:reached] if k in page}
            keys = keys[reached:]
    except FileNotFoundError:  # no such bucket
        return {}
    except PermissionError:  # of a bucket that may not be listed, objects may still be read
        for key in keys:
            with suppress(FileNotFoundError, PermissionError):
                found[key] = _look(store, key)
    return found


def _just_before(key: str) -> str:
    """A string that sorts before a key, and hardly any other key between the two."""
    last = key[-1]
    return key[:-1] + ("" if last <= "!" else chr(0xD7FF if last == "\ue000" else ord(last) - 1) + "~")


def _page(store: ObjectStore, **which: Any) -> tuple[dict[str, ObjectState], str]:
    """Up to a thousand objects of a bucket, and how to ask for those that follow, "" when none does."""
    with _refusals(str(store)):
        answer = store.ask("", "list_objects_v2", **which)
    found = {about["Key"]: _state(about, about["Size"]) for about in answer.get("Contents", ())}
    return found, str(answer["NextContinuationToken"]) if answer.get("IsTruncated") else ""


def _state(about: dict[str, Any], size_bytes: int) -> ObjectState:
    return ObjectState(size_bytes, int(about["LastModified"].timestamp()) * 1_000_000_000, about.get("ETag", ""))


@contextmanager
def _refusals(uri: str) -> Iterator[None]:
    """Makes PermissionError of what we may not do with one object, as against a store that fails or does not know us at all."""
    try:
        yield
    except StorageError as e:
        if e.errno == errno.EACCES and error_code(e) not in _OF_WHO_WE_ARE:
            raise PermissionError(errno.EACCES, e.strerror, uri) from e
        raise
