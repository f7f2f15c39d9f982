"""Content: which bytes a source path stands for, and whether it still does. Nobody locks the user's files while we read them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from schemas.ids import file_digest


class Stamp(NamedTuple):
    """What the file system says of a file. One that is written to or replaced has another: nobody can set `changed_ns` back."""

    size_bytes: int
    mtime_ns: int
    changed_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        s = path.stat()
        return cls(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)


def read_content(path: Path) -> tuple[str, Stamp]:
    """The file's digest, and its stamp from before it was read."""
    stamp = Stamp.of(path)
    return file_digest(path), stamp


def check_content(path: Path, content: str, known: Stamp | None = None) -> Stamp:
    """The file's stamp. `known` is a stamp under which the file had this content: while it lasts, the file is not read again.

    Raises:
        ValueError: the file's content is not `content` any more.
    """
    stamp = Stamp.of(path)
    if stamp != known and file_digest(path) != content:
        raise ValueError(f"{path}: changed since it was looked through; run again")
    return stamp
