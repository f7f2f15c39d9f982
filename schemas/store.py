"""Stores: a folder of named files, on a disk or in an object store. A file appears under its name whole, or not at all.

Everything that a run keeps is read and written here. Names are relative to the store, with slashes. On a disk a file is written under
another name, flushed, and renamed; in an object store one PUT, or the end of a multipart upload, is what makes it appear.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, Union

from schemas.files import StorageError, atomic_file
from schemas.ids import content_digest, file_digest

_T = TypeVar("_T")
Place = Union[str, Path, "Store"]
"""Where a store is, or the store."""
_AT_ONCE = 64  # objects asked for together
_NEAR_BYTES = 1 << 16  # less than what arrives in the time that another request takes
_DELETED_AT_ONCE = 1000
_WAITS_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # between two tries of an object store that fails: 40 s in all
_PATIENCE_S = 180.0  # for one that does not even answer: a unit has a time limit


class Store(Protocol):
    """A folder. `str` of it is its place: a path, or a URI."""

    @property
    def here(self) -> Path:
        """The folder of this machine that work on it is done in."""

    def at(self, name: str) -> str:
        """Where a file is, for messages."""

    def sub(self, folder: str) -> Store:
        """A folder in it."""

    def size(self, name: str) -> int:
        """Bytes of a file; -1 when it is not there."""

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Stretches (offset, size) of one file; a stretch beyond its end comes short. Each is read for itself where that costs nothing,
        and with its near neighbours where each request does. Raises FileNotFoundError."""

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Whole files, in the order of `names`. Raises FileNotFoundError."""

    def digest(self, name: str) -> str:
        """Of a file's content (schemas.ids.file_digest). Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, atomically, over the old one if there is one."""

    def writing(self, name: str) -> Any:
        """A context manager that gives a binary file to write to; what was written appears at its end, unless that is an error."""

    def put(self, file: Path, name: str) -> None:
        """Takes over the content of a local file, atomically."""

    def mark(self, name: str) -> None:
        """An empty file, which a machine's crash may lose."""

    def names(self, prefix: str, suffix: str = "") -> list[str]:
        """All files whose name begins and ends so, at any depth, sorted. Hidden ones and those being written are not among them."""

    def folders(self, prefix: str, depth: int) -> list[str]:
        """Folders `depth` levels below the folder `prefix`, sorted."""

    def delete(self, names: Sequence[str]) -> None:
        """Takes files away; those that are not there do not matter."""

    def delete_folder(self, folder: str) -> None:
        """Takes a folder away, with all that is in it."""

    def clear_unfinished(self) -> None:
        """Takes away what killed processes were writing; only for the one process that works on the store."""


def open_store(place: Place, base: Path | None = None) -> Store:
    """The store at a path (relative to `base`) or a URI s3://bucket/prefix; a store comes back as it is.

    Raises:
        ValueError: a URI that is not s3://, or s3:// without s3fs installed.
    """
    if isinstance(place, DiskStore | ObjectStore):
        return place
    assert isinstance(place, str | Path), place
    if isinstance(place, str) and "://" in place:
        return ObjectStore(place)
    return DiskStore(((base or Path()) / Path(place).expanduser()).absolute())


class DiskStore:
    """A folder of a file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    @property
    def here(self) -> Path:
        return self.root

    def at(self, name: str) -> str:
        return str(self.root / name)

    def sub(self, folder: str) -> DiskStore:
        return DiskStore(self.root / folder)

    def size(self, name: str) -> int:
        path = self.root / name
        return path.stat().st_size if path.is_file() else -1

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        # Straight into the bytes that are handed out: each copy of them, into new memory, would cost more than reading them.
        file = os.open(f"{self.root}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [_read_at(file, offset, size) for offset, size in ranges]
        finally:
            os.close(file)

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        return [self.read(name) for name in names]

    def digest(self, name: str) -> str:
        return file_digest(self.root / name)

    def write(self, name: str, data: bytes) -> None:
        with atomic_file(self.root / name) as f:
            f.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        with atomic_file(self.root / name) as f:
            yield f

    def put(self, file: Path, name: str) -> None:
        with atomic_file(self.root / name) as f, file.open("rb") as source:
            shutil.copyfileobj(source, f)

    def mark(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def names(self, prefix: str, suffix: str = "") -> list[str]:
        folder, start = self.root / prefix.rpartition("/")[0], prefix.rpartition("/")[2]
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):  # `glob` would find nothing there
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        found: list[str] = []
        with_start = sorted(folder.glob(f"{_literal(start)}*")) if folder.is_dir() else []
        for path in with_start:
            found += [str(p.relative_to(self.root)) for p in (path.rglob("*") if path.is_dir() else (path,)) if p.is_file()]
        return sorted(n for n in found if n.endswith(suffix) and not n.rpartition("/")[2].startswith("."))

    def folders(self, prefix: str, depth: int) -> list[str]:
        return sorted(str(p.relative_to(self.root)) for p in (self.root / prefix).glob("/".join("*" * depth)) if p.is_dir())

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def clear_unfinished(self) -> None:
        for pattern in (".*.tmp-*", "tables/.*.tmp-*", "ledger/*/.*.tmp-*", "shards/*/.*.tmp-*", "shards/*/*/.*.tmp-*", "report/.*.tmp-*"):
            for path in self.root.glob(pattern):
                path.unlink(missing_ok=True)


def _read_at(file: int, offset: int, size: int) -> bytes:
    data = os.pread(file, size, offset)
    while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):  # a read may stop short of 2 GiB
        data += more
    return data


def _literal(start: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in start)


class ObjectStore:
    """A prefix of an S3 bucket, or of what speaks its protocol (AWS_ENDPOINT_URL and AWS's other variables say where, and who we are).

    What fails for a moment is tried again for most of a minute; then StorageError names the object.
    """

    def __init__(self, uri: str) -> None:
        scheme, _, path = uri.partition("://")
        if scheme != "s3" or not path.strip("/"):
            raise ValueError(f"{uri}: a run's folder is a path or s3://bucket/prefix")
        try:
            import s3fs
        except ImportError as e:
            raise ValueError(f"{uri}: object stores need s3fs: install crosspair[s3]") from e
        self._path = path.strip("/")
        # Few tries below: each layer's are multiplied by those of the layer above, and the last layer is `_try`.
        config = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 2, "mode": "standard"}}
        # A listing from memory would hide what other workers have written.
        self._fs = s3fs.S3FileSystem(use_listings_cache=False, config_kwargs=config)
        self._fs.retries = 2

    def __str__(self) -> str:
        return f"s3://{self._path}"

    @property
    def here(self) -> Path:
        return _scratch()

    def at(self, name: str) -> str:
        return f"{self}/{name}"

    def sub(self, folder: str) -> ObjectStore:
        return ObjectStore(f"{self}/{folder}")

    def size(self, name: str) -> int:
        try:
            return int(self._try(name, lambda: self._fs.info(self._key(name), refresh=True))["size"])
        except FileNotFoundError:
            return -1

    def read(self, name: str) -> bytes:
        data: bytes = self._try(name, lambda: self._fs.cat_file(self._key(name), max_concurrency=1))
        return data

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        spans = _spans(ranges)
        keys, starts, ends = [self._key(name)] * len(spans), [start for start, _ in spans], [end for _, end in spans]

        def call() -> list[bytes]:
            parts = self._fs.cat_ranges(keys, starts, ends, on_error="return")
            for part in parts:
                if isinstance(part, Exception) and error_code(part) not in ("InvalidRange", "416"):
                    raise part
            return [b"" if isinstance(part, Exception) else part for part in parts]

        read = self._try(name, call)
        holders = [bisect_right(starts, offset) - 1 for offset, _ in ranges]
        return [read[k][offset - starts[k] : offset - starts[k] + size] for k, (offset, size) in zip(holders, ranges, strict=True)]

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        found: list[bytes] = []
        for first in range(0, len(names), _AT_ONCE):
            keys = [self._key(n) for n in names[first : first + _AT_ONCE]]
            # A single one comes back as bytes.
            data = self._try(names[first], lambda keys=keys: self._fs.cat(keys, on_error="raise", max_concurrency=1))  # type: ignore[misc]
            found += [data[k] for k in keys] if isinstance(data, dict) else [data]
        return found

    def digest(self, name: str) -> str:
        return content_digest(self.read(name))

    def write(self, name: str, data: bytes) -> None:
        self._try(name, lambda: self._fs.pipe_file(self._key(name), data), writes=True)

    def ask(self, name: str, operation: str, **more: Any) -> dict[str, Any]:
        """One of S3's own operations that read, on an object or, without a name, on the bucket: the answer, its `Body` read.

        Raises:
            FileNotFoundError: there is no such object, or no such bucket.
            ValueError: the object is not in the state that `more` asks for.
        """
        from fsspec.asyn import sync

        bucket, _, key = self._key(name).partition("/")
        about = {"Bucket": bucket, "Key": key} if name else {"Bucket": bucket}

        async def call() -> dict[str, Any]:
            try:
                answer: dict[str, Any] = await self._fs._call_s3(operation, **about, **more)
            except Exception as e:
                if _says_precondition(e):
                    raise ValueError(f"{self.at(name)}: changes while it is read; run again") from e
                raise
            return {**answer, "Body": await answer["Body"].read()} if "Body" in answer else answer

        return self._try(name, lambda: sync(self._fs.loop, call))

    def read_tagged(self, name: str) -> tuple[bytes, str]:
        """A file, and the tag that names this state of it. Raises FileNotFoundError."""
        answer = self.ask(name, "get_object")
        return answer["Body"], answer["ETag"]

    def write_if(self, name: str, data: bytes, tag: str, *, patient: bool = True) -> str | None:
        """Writes a file if it is still in the state `tag` ("": not there); the tag of the new state, None if it was in another.

        No two callers are told that they did it. One that is not `patient` does not try again what fails.
        """
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}

        def call() -> str | None:
            bucket, _, key = self._key(name).partition("/")
            try:
                return str(self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)["ETag"])
            except Exception as e:
                if error_code(e) == "NoSuchBucket":
                    raise ValueError(f"{self}: no such bucket") from e
                # A file that has gone is not in the state either.
                if not _says_precondition(e) and not isinstance(e, FileNotFoundError):
                    raise
            # The answer to an earlier try may have been lost: then the file is ours.
            try:
                there, now = self.read_tagged(name)
            except FileNotFoundError:
                return None
            return now if there == data else None

        return self._try(name, call, waits_s=_WAITS_S if patient else ())

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        try:
            with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
                file = Path(folder) / "file"
                with file.open("wb") as f:
                    yield f
                self.put(file, name)
        finally:
            with suppress(OSError):  # others write too
                _scratch().rmdir()

    def put(self, file: Path, name: str) -> None:
        self._try(name, lambda: self._fs.put_file(str(file), self._key(name)), writes=True)

    def mark(self, name: str) -> None:
        self.write(name, b"")

    def names(self, prefix: str, suffix: str = "") -> list[str]:
        folder, _, start = prefix.rpartition("/")
        found = self._try(prefix, lambda: self._fs.find(self._key(folder), prefix=start))
        inside = [key[len(self._path) + 1 :] for key in found if key.startswith(f"{self._path}/{prefix}")]
        # A name that ends in a slash is a folder's, which some tools make.
        return sorted(n for n in inside if n.endswith(suffix) and not n.endswith("/") and not n.rpartition("/")[2].startswith("."))

    def folders(self, prefix: str, depth: int) -> list[str]:
        level = prefix.count("/") + 1 + depth
        return sorted({"/".join(n.split("/")[:level]) for n in self.names(f"{prefix}/") if n.count("/") >= level})

    def delete(self, names: Sequence[str]) -> None:
        bucket, _, _ = self._path.partition("/")
        for first in range(0, len(names), _DELETED_AT_ONCE):
            objects = [{"Key": self._key(n).partition("/")[2]} for n in names[first : first + _DELETED_AT_ONCE]]

            def call(objects: list[dict[str, str]] = objects) -> None:
                answer = self._fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                if answer.get("Errors"):
                    raise OSError(f"not deleted: {answer['Errors'][0]}")

            self._try(names[first], call)

    def delete_folder(self, folder: str) -> None:
        self.delete(self.names(f"{folder}/"))

    def clear_unfinished(self) -> None:
        """Ends the multipart uploads of killed processes: they are not to be seen, and cost their owner money."""
        bucket, _, prefix = self._path.partition("/")
        more = True
        while more:
            found = self._try("", lambda: self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/"))
            more = found.get("IsTruncated", False)  # those that are ended here are not listed again
            for upload in found.get("Uploads", ()):
                with suppress(FileNotFoundError):  # it ended meanwhile
                    about = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._try("", partial(self._fs.call_s3, "abort_multipart_upload", **about))

    def _key(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def _try(self, name: str, call: Callable[[], _T], *, writes: bool = False, waits_s: Sequence[float] | None = None) -> _T:
        """Calls until it works or patience is at its end. Every call can be made twice: it reads, puts the same bytes, or deletes.

        Raises:
            FileNotFoundError: there is no such object (of a call that `writes`, it means that an upload was ended from outside).
            StorageError: not allowed, or still failing.
        """
        until = time.monotonic() + _PATIENCE_S
        for wait_s in (*(_WAITS_S if waits_s is None else waits_s), None):
            try:
                return call()
            except (ValueError, MemoryError):
                raise
            except Exception as e:  # botocore, aiohttp and asyncio each have their own words for a bad moment
                if isinstance(e, FileNotFoundError) and not writes:
                    raise
                if wait_s is None or isinstance(e, PermissionError) or time.monotonic() > until:
                    number = errno.EACCES if isinstance(e, PermissionError) else 0
                    raise StorageError(number, str(e), self.at(name)) from e
                time.sleep(wait_s * random.uniform(0.5, 1.0))
        raise AssertionError


def _spans(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where stretches (offset, size) begin and end that hold all of `ranges`, in their order; near ones are one."""
    spans: list[tuple[int, int]] = []
    for offset, size in sorted(ranges):
        if spans and offset <= spans[-1][1] + _NEAR_BYTES:
            spans[-1] = spans[-1][0], max(spans[-1][1], offset + size)
        else:
            spans.append((offset, offset + size))
    return spans


def error_code(error: BaseException | None) -> str:
    """S3's own word for an error, from it or from those that it came of; "" for an error that is none of S3's."""
    while error is not None:
        if response := getattr(error, "response", None):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _says_precondition(error: BaseException) -> bool:
    """Whether a request was refused because the object was not in the state that it named."""
    return error_code(error) in ("PreconditionFailed", "412")


def scratch_folder(kind: str = "") -> Path:
    """This process's folder for files on their way to or from an object store; made when it is asked for and not there.

    `kind` names another one beside it, which stays when a unit's goes.
    """
    mine = _scratch(kind)
    if not mine.is_dir():
        clear_scratch()
        mine.mkdir()
    return mine


def _scratch(kind: str = "") -> Path:
    return Path(tempfile.gettempdir()) / f"{_scratch_prefix()}{os.getpid()}{kind}"


def clear_scratch() -> None:
    """Takes away what killed processes of this machine have left."""
    for left in Path(tempfile.gettempdir()).glob(f"{_scratch_prefix()}*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)


def _scratch_prefix() -> str:
    """Containers that share a folder for temporary files have process numbers of their own."""
    space = Path("/proc/self/ns/pid")
    return f"crosspair-{space.stat().st_ino if space.exists() else 0}-"
