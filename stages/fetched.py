"""Fetched: this machine's copy of a source that lies in an object store. The latest one stays, since a film has hundreds of shots."""

from __future__ import annotations

import atexit
import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.files import StorageError
from schemas.objects import ObjectState, fetch_object, is_object, object_state
from schemas.outcomes import Rejection
from schemas.store import scratch_folder

_KIND = "-source"  # of scratch folder: it outlives the units
_FAILS = getattr(errno, "EREMOTEIO", errno.EIO)  # a source that cannot be read for now is no fault of the run's own storage


@dataclass(frozen=True)
class _Copy:
    uri: str
    state: ObjectState
    path: Path


_latest: _Copy | None = None


def local_copy(uri: str) -> Path:
    """A file that holds what the object holds now. It stays until another one is asked for, `let_go`, or the end of the process.

    Raises:
        Rejection: missing, unreadable.
        OSError: the store fails.
        ValueError: the object changes while it is fetched.
        StorageError: this machine's disk fails, or is full.
    """
    global _latest
    with _told_of_a_source(uri):
        state = object_state(uri)
    if _latest is not None and (_latest.uri, _latest.state) == (uri, state) and _latest.path.is_file():
        return _latest.path
    let_go()
    path = Path(tempfile.mkdtemp(dir=scratch_folder(_KIND))) / f"source{_suffix(uri)}"
    try:
        with _told_of_a_source(uri):
            fetch_object(uri, state, path)
    except BaseException:
        shutil.rmtree(scratch_folder(_KIND), ignore_errors=True)
        raise
    _latest = _Copy(uri, state, path)
    return path


@atexit.register
def let_go() -> None:
    """Takes the copy away."""
    global _latest
    if _latest is not None:
        _latest = None
        shutil.rmtree(scratch_folder(_KIND), ignore_errors=True)


@contextmanager
def _told_of_a_source(uri: str) -> Iterator[None]:
    """Errors in the words for a unit; those of this machine's disk stay what they are."""
    try:
        yield
    except FileNotFoundError as e:
        raise Rejection("missing", f"{uri}: no such object") from e
    except PermissionError as e:
        raise Rejection("unreadable", f"{uri}: {e.strerror}") from e
    except StorageError as e:
        if not is_object(str(e.filename)):
            raise
        raise OSError(_FAILS, f"the object store fails: {e.strerror}", uri) from e


def _suffix(uri: str) -> str:
    """What decoders may go by; the rest of a key may be no name for a file."""
    suffix = Path(uri).suffix
    return suffix if suffix.isascii() and suffix[1:].isalnum() and len(suffix) <= 8 else ""
