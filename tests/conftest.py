"""What all tests share: one Ray, the folder of real clips, and a hypothesis that is the same every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("crosspair", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("crosspair")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the whole session; four logical CPUs, whatever the machine has."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=256 << 20, log_to_driver=False, logging_level="ERROR")
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder named by CROSSPAIR_SHARED. Without the variable a test that needs it is skipped; a file missing from it is a failure."""
    folder = os.environ.get("CROSSPAIR_SHARED")
    if not folder:
        pytest.skip("CROSSPAIR_SHARED names no folder with real clips")
    path = Path(folder)
    assert (path / "realdata" / "MANIFEST.csv").is_file(), f"{path}: holds no realdata/MANIFEST.csv"
    return path
