"""Writing to the run's folder so that a kill at any moment leaves the old file or the new one, and one run at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from schemas.files import atomic_file


def write_atomic(path: Path, data: bytes) -> None:
    with atomic_file(path) as f:
        f.write(data)


def read_run_file(root: Path) -> dict[str, Any]:
    """RUN/run.yaml: config, fingerprints, versions. Raises ValueError when `root` is no run."""
    path = root / "run.yaml"
    if not path.is_file():
        raise ValueError(f"{root}: no run (run.yaml is missing)")
    return dict(yaml.safe_load(path.read_text()))


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet, atomically; left alone when it already holds the same rows."""
    if path.is_file() and pq.read_table(path).equals(table):
        return
    with atomic_file(path) as f:
        pq.write_table(table, f, compression="zstd")


def clear_temporaries(root: Path) -> None:
    """Takes away the temporary files of killed processes; only for the process that holds the run."""
    for pattern in (".*.tmp-*", "tables/.*.tmp-*", "ledger/*/.*.tmp-*", "shards/*/.*.tmp-*"):
        for path in root.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Only one process works on a run. The lock goes with its process, however that ends.

    Raises:
        ValueError: another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ValueError(f"{root}: another crosspair process works on this run; wait for it or stop it") from e
        yield
