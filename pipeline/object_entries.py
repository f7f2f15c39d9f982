"""Entries in S3: which objects a config's s3://... names. As on a disk, a prefix is a folder, and in a glob only `**` crosses a slash."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from schemas.objects import list_keys, object_state, split_uri

_WILD = re.compile(r"[*?[]")


def match_objects(entry: str, suffixes: frozenset[str], *, must_exist: bool) -> list[str]:
    """URIs of the object of this name, else of those below the prefix that have one of the suffixes, else of those that a glob matches.

    Raises:
        ValueError: a bucket that may not be listed or, if it `must_exist`, is not there.
        StorageError: the store fails.
    """
    with suppress(FileNotFoundError, PermissionError):  # a listing tells more
        object_state(entry)
        return [entry]
    bucket, key = split_uri(entry)
    folder = key if not key or key.endswith("/") else f"{key}/"
    start = _WILD.split(key, maxsplit=1)[0]
    try:
        keys = [k for k in list_keys(bucket, folder) if not k.endswith("/")]
        if keys or start == key:
            found = [k for k in keys if suffix_of(k) in suffixes and not k.rpartition("/")[2].startswith(".")]
        else:
            wild = key[len(start) :]
            keys = [k for k in list_keys(bucket, start, deep="/" in wild or "**" in wild) if not k.endswith("/")]
            found = [k for k in keys if _matches(k.split("/"), key.split("/"))]
    except FileNotFoundError as e:
        if not must_exist:
            return []
        raise ValueError(f"{entry}: no such bucket; see to its name and, if it is not on AWS, to AWS_ENDPOINT_URL") from e
    except PermissionError as e:
        raise ValueError(f"{entry}: may not be listed: {e.strerror}; allow s3:ListBucket, or name objects one by one") from e
    return [f"s3://{bucket}/{k}" for k in found]


def suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a key match those of a glob, as `glob.glob` has it."""
    if not patterns:
        return not parts
    seen = bool(parts) and (not parts[0].startswith(".") or patterns[0].startswith("."))
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (seen and _matches(parts[1:], patterns))
    return seen and fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
