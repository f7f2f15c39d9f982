"""One small world of good and bad input, and one finished run over it, shared by the tests that look at runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from smallworld import Finished, Silent, World, make_world


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
