"""Files: what must hold before anyone is told of one."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_OF_WRITING = {  # come of writing alone, and sources are only read
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or have the quota raised",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or use another file system",
    errno.EROFS: "make it writable",
}
_OF_ANY_ACCESS = {  # may come of a source too, so here the path counts
    errno.EACCES: "let this user read and write there",
    errno.EPERM: "let this user read and write there",
    errno.EIO: "mend the disk",
    errno.ESTALE: "mount it again",
    errno.ENOTCONN: "mount it again",
}


class StorageError(OSError):
    """The run's own storage failed, and no unit is to blame for it: whoever meets this stops, and books nothing.

    Made as OSError(errno, strerror, filename) is; its text is a sentence for the user.
    """

    def __str__(self) -> str:
        remedy = (_OF_WRITING | _OF_ANY_ACCESS).get(self.errno or 0, "mend the storage")
        return f"{self.filename}: {self.strerror}; {remedy}, then run again: it goes on where it stood"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Without `args`, to which Ray Data adds advice of its own."""
        return type(self), (self.errno, self.strerror, self.filename)


@contextmanager
def own_storage(root: Path, file: Path | None = None) -> Iterator[None]:
    """Makes StorageError of the OSErrors by which the storage under `root` failed or refused.

    Errors in reading and writing an open file name none: they are about `file`, without which only those of writing count.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as e:
        where = Path(os.fsdecode(e.filename)) if isinstance(e.filename, str | bytes) else file
        ours = where is not None and (where.is_relative_to(root) or root.is_relative_to(where))
        if e.errno in _OF_WRITING or (e.errno in _OF_ANY_ACCESS and ours):
            raise StorageError(e.errno, os.strerror(e.errno), str(where or root)) from e
        raise


def flush_to_disk(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name whole, flushed to the disk, or not at all. Raises StorageError where that cannot be."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with own_storage(path.parent, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
            flush_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
