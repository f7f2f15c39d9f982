"""One small world of good and bad input, and one finished run over it, shared by the tests that look at runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from smallworld import Finished, Silent, World, make_world

from pipeline import leak


@pytest.fixture(scope="session", autouse=True)
def _few_looks() -> Iterator[None]:
    """The leak probe takes two samples of a run for its report, not sixteen: what it finds is asked where its own tests are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leak, "LeakConfig", partial(leak.LeakConfig, samples=2, frames=leak.MIN_FRAMES))
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished(world: World) -> Finished:
    """A whole run, without Ray; test_run.py asks that Ray gives the same bytes. Tests that change anything work on a copy."""
    watcher = Silent()
    summary = world.run("run", watcher)
    return Finished(world.base / "run", summary, watcher)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run's folder."""
    shutil.copytree(finished.root, tmp_path / "run")
    return tmp_path / "run"
