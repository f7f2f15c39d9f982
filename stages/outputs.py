"""What a stage reads of the run and what it writes: one folder of its own per attempt. Files are kept before anyone is told of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from schemas.files import flush_to_disk, own_storage
from schemas.ids import file_digest
from schemas.objects import is_object
from schemas.store import DiskStore, Store, scratch_folder
from schemas.units import SourceFile
from stages.fetched import local_copy


@dataclass
class Outputs:
    """The attempt's folder. Records name files relative to the run, so that a run can be moved.

    On a disk a stage works in the run's own folders. Files of a run in an object store are fetched when a stage asks for them, and
    what it writes stays on the worker's disk until `flush`.

    Attributes:
        run: the run's folder.
        folder: this attempt's folder, relative to the run; created when the first file is asked for.
        seconds: what this unit may take; stages pass it on to subprocesses.
    """

    run: Store
    folder: str
    seconds: float = 600.0
    digests: dict[str, str] = field(default_factory=dict)
    _sent: bool = False  # files to an object store
    _copies: dict[str, Path] = field(default_factory=dict)  # URI -> this machine's copy

    @property
    def _here(self) -> Path:
        """The folder that `folder` is relative to, on this machine."""
        return self.run.root if isinstance(self.run, DiskStore) else scratch_folder()

    def input(self, folder: str, name: str) -> Path:
        """A file of the run, to read. Raises FileNotFoundError."""
        if isinstance(self.run, DiskStore):
            return self.run.root / folder / name
        path = scratch_folder() / "inputs" / folder / name
        if not path.is_file():
            data = self.run.read(f"{folder}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return path

    def source(self, source: SourceFile) -> Path:
        """A file of the user's, to read: itself, or a copy of an object as it was when this attempt first asked for it.

        Raises:
            Rejection: missing, unreadable; of an object only, as the rest below.
            OSError: the object store fails.
            ValueError: the object changes while it is fetched.
        """
        if not is_object(source.uri):
            return Path(source.uri)
        if source.uri not in self._copies:
            self._copies[source.uri] = local_copy(source.uri)
        return self._copies[source.uri]

    def worded(self, message: str) -> str:
        """A message in which copies have the names of what they are copies of."""
        for uri, path in self._copies.items():
            message = message.replace(str(path), uri)
        return message

    def path(self, name: str) -> Path:
        """A path to write one new file to."""
        assert "/" not in name, name
        folder = self._here / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def seal(self, name: str) -> str:
        """Flushes a written file to the disk and returns its digest."""
        path = self.path(name)
        with own_storage(self.run.here, path):
            if isinstance(self.run, DiskStore):
                flush_to_disk(path)
            self.digests[name] = file_digest(path)
        return self.digests[name]

    def write(self, name: str, data: bytes) -> str:
        """Writes, flushes and digests one small file."""
        path = self.path(name)
        with own_storage(self.run.here, path):
            path.write_bytes(data)
        return self.seal(name)

    def flush(self) -> None:
        """Makes sure that all files are in the run to stay. Once, before the record."""
        if not (self._here / self.folder).is_dir():
            return  # a stage without files
        if not isinstance(self.run, DiskStore):
            self._sent = True
            for name in self.digests:
                self.run.put(self.path(name), f"{self.folder}/{name}")
            return
        with own_storage(self.run.here, self._here / self.folder):
            for folder in [Path(self.folder), *Path(self.folder).parents]:  # the names of the files, and of the folders
                flush_to_disk(self._here / folder)

    def drop(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        self.digests.pop(name, None)

    def discard(self) -> None:
        """Takes the attempt's folder away."""
        if isinstance(self.run, DiskStore) or self._sent:
            self.run.delete_folder(self.folder)

    def close(self) -> None:
        """The unit has ended, well or not: its files are in the run, and copies on this machine can go."""
        if not isinstance(self.run, DiskStore):
            shutil.rmtree(scratch_folder(), ignore_errors=True)
