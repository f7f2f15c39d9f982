"""Where a stage may write: one folder of its own per attempt. Files are flushed before anyone is told of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from schemas.files import flush_to_disk
from schemas.ids import file_digest


@dataclass
class Outputs:
    """The attempt's folder. `root` is the run; records name files relative to it, so that a run can be moved.

    Attributes:
        root: the run's folder.
        folder: this attempt's folder, relative to `root`; created when the first file is asked for.
        seconds: what this unit may take; stages pass it on to subprocesses.
    """

    root: Path
    folder: str
    seconds: float = 600.0
    digests: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """A path to write one new file to."""
        assert "/" not in name, name
        folder = self.root / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def seal(self, name: str) -> str:
        """Flushes a written file to the disk and returns its digest."""
        path = self.path(name)
        flush_to_disk(path)
        self.digests[name] = file_digest(path)
        return self.digests[name]

    def write(self, name: str, data: bytes) -> str:
        """Writes, flushes and digests one small file."""
        self.path(name).write_bytes(data)
        return self.seal(name)

    def flush(self) -> None:
        """Flushes the names of the files to the disk: the attempt's folder and all folders up to the run's. Once, before the record."""
        if not (self.root / self.folder).is_dir():
            return  # a stage without files
        for folder in [Path(self.folder), *Path(self.folder).parents]:
            flush_to_disk(self.root / folder)

    def drop(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        self.digests.pop(name, None)

    def discard(self) -> None:
        """Takes the attempt's folder away."""
        shutil.rmtree(self.root / self.folder, ignore_errors=True)
