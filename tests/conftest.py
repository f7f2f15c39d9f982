"""What all tests share: their order, one Ray, one S3 server, the folder of real clips, and a hypothesis that is the same every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from s3server import S3Server

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# set before Ray starts, else its workers would not know; no developer's own keys are used by accident
S3 = S3Server()
os.environ.update(S3.environment())

settings.register_profile("crosspair", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("crosspair")

# Files that take longest, slow tests included, longest first; the others as they are collected. Files are dealt to processes in this order
# (--no-loadscope-reorder), so that none begins minutes of work when the other has run out of it.
LONGEST = (
    "model/test_train.py",
    "pipeline/test_realdata.py",
    "pipeline/test_liveportrait_run.py",
    "pipeline/test_interrupts.py",
    "pipeline/test_kill_campaign.py",
    "pipeline/test_object_store.py",
    "model/test_liveportrait_export.py",
    "model/test_workers.py",
    "pipeline/test_pairs_add.py",
    "pipeline/test_run.py",
    "pipeline/test_fan_out.py",
    "pipeline/test_mutant_campaign.py",
    "pipeline/test_s3_sources.py",
    "stages/test_meshwarp_real.py",
    "model/test_learns.py",
    "stages/test_one_person.py",
    "stages/test_truth.py",
    "stages/test_liveportrait_graphs.py",
    "pipeline/test_weights.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


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


@pytest.fixture
def s3() -> Iterator[S3Server]:
    """The session's S3 server, without faults and its counts at nought; what earlier tests stored is still there. It ends with pytest."""
    if S3.process is None:
        S3.start()
    S3.faults({})
    yield S3
    if S3.process is not None:
        S3.calm()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder named by CROSSPAIR_SHARED. Without the variable a test that needs it is skipped; a file missing from it is a failure."""
    folder = os.environ.get("CROSSPAIR_SHARED")
    if not folder:
        pytest.skip("CROSSPAIR_SHARED names no folder with real clips")
    path = Path(folder)
    assert (path / "realdata" / "MANIFEST.csv").is_file(), f"{path}: holds no realdata/MANIFEST.csv"
    return path
