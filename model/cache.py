"""A folder of this machine that keeps what was fetched from afar, up to a size. Several processes may share it.

Files are named by what they hold and appear whole, or not at all. Whoever writes makes room, and any file may be gone at any time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

_SUFFIX = ".sample"  # what else lies in the folder is not ours
_TEMPORARY = ".tmp-"
_STALE_S = 3600.0  # a file that has been in writing for so long is of a killed process
_AT_ONCE = 1 / 64  # of the size: what a process writes until it looks again at what all of them have written
_KEPT = 7 / 8  # of the size: what is left when room is made, so that eight processes do not go beyond it

_log = logging.getLogger(__name__)


class Cache:
    """Bytes by name. What was asked for last goes last."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max = folder, max_bytes
        self._lock, self._room = threading.Lock(), 0
        folder.mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> tuple[type[Cache], tuple[Path, int]]:
        return Cache, (self._folder, self._max)  # a lock stays in its process

    def get(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)  # file systems are often mounted so that reading leaves no time
        except OSError:  # never there, or gone meanwhile
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keeps bytes, unless that does not work: then a warning says so, and they are fetched again when they are wanted."""
        if len(data) > self._max * _AT_ONCE:  # too many others would have to go for it
            return
        temporary = self._folder / f"{_TEMPORARY}{uuid.uuid4().hex[:12]}{_SUFFIX}"
        try:
            with self._lock:
                if self._room < len(data):
                    self._room = self._make_room()
                self._room -= len(data)
            temporary.write_bytes(data)
            temporary.replace(self._path(name))
        except OSError as e:
            _log.warning("%s: keeps nothing now: %s", self._folder, e)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        with suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _make_room(self) -> int:
        """Takes away what was not asked for the longest, if there is too much; how many bytes may come now."""
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                about = path.stat()
                stale = path.name.startswith(_TEMPORARY) and about.st_mtime < time.time() - _STALE_S
                found.append((0.0 if stale else about.st_mtime, about.st_size, path))
        found.sort()
        total = sum(size for _, size, _ in found)
        for age, size, path in found:
            if age and total <= self._max * _KEPT:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
            total -= size
        return int(self._max * _AT_ONCE)
