"""What a run's folder is to its processes: one works on it at a time, and tells by run.yaml and tables what it holds."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import yaml

from pipeline.lease import held
from schemas.files import own_storage
from schemas.sample import parquet_bytes
from schemas.store import DiskStore, Place, Store, open_store


def read_run_file(root: Place) -> dict[str, Any]:
    """RUN/run.yaml: config, fingerprints, versions. Raises ValueError when there is none."""
    try:
        return dict(yaml.safe_load(open_store(root).read("run.yaml")))
    except FileNotFoundError as e:
        raise ValueError(f"{root}: no run (run.yaml is missing)") from e


def write_table(store: Store, name: str, table: pa.Table) -> None:
    """Parquet, atomically; left alone when it is the same already."""
    write_changed(store, name, parquet_bytes(table))


def write_changed(store: Store, name: str, data: bytes) -> None:
    """Writes a file unless it holds just this already."""
    if store.size(name) != len(data) or store.read(name) != data:
        store.write(name, data)


@contextmanager
def exclusive(place: Place) -> Iterator[None]:
    """Only one process works on a run. The lock goes with its process, however that ends.

    Raises:
        ValueError: another process holds it.
        StorageError: the run's storage fails, now or while the lock is held.
    """
    root = open_store(place)
    with own_storage(root.here):
        if not isinstance(root, DiskStore):
            with held(root):
                yield
            return
        root.root.mkdir(parents=True, exist_ok=True)
        with (root.root / ".lock").open("a") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise ValueError(f"{root}: another crosspair process works on this run; wait for it or stop it") from e
            yield
