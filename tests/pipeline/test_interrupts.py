"""Ctrl-C, SIGTERM and a second run: a run ends cleanly, says how to go on, leaves no process, and is alone in its folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from smallworld import CONFIG, Finished, Silent, World

from pipeline.interrupts import Terminated, interruptible, uninterrupted
from pipeline.storage import exclusive
from pipeline.verify import diff, verify

CROSSPAIR = [sys.executable, "-c", "from pipeline.cli import main; main()"]
REPO = Path(__file__).parents[2]
MARK = "CROSSPAIR_TEST"  # a variable that every process of a session has in its environment
PATIENCE_S = 30.0  # for what should go by itself


class Session:
    """A `crosspair run` with a Ray of its own, in a process group of its own as a terminal would give it."""

    def __init__(self, config: Path, root: Path) -> None:
        self._root, self._mark = root, uuid.uuid4().hex
        self._before = set(root.rglob("*"))
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(REPO), MARK: self._mark}
        self.process = subprocess.Popen(
            [*CROSSPAIR, "run", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
        )

    def wait_for(self, pattern: str) -> None:
        """Until something of that name has appeared in the run since the start."""
        until = time.monotonic() + 200
        while not set(self._root.glob(pattern)) - self._before:
            assert self.process.poll() is None, f"ended before {pattern} was there: {self.process.communicate()}"
            assert time.monotonic() < until, f"no {pattern}"
            time.sleep(0.01)

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left_behind(self) -> list[str]:
        until = time.monotonic() + PATIENCE_S
        while (alive := self.alive()) and time.monotonic() < until:
            time.sleep(0.1)
        return [str(p) for p in alive]

    def end(self) -> None:
        while alive := self.alive():
            for process in alive:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, timeout=1)
        self.process.communicate()


@contextmanager
def started(config: Path, root: Path) -> Iterator[Session]:
    session = Session(config, root)
    try:
        yield session
    finally:
        session.end()


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Ctrl-C is, also where these tests are a shell's background job: that ignores it, and so would all its children.

    And a terminal's end is not, as under nohup: the kernel tells it to stopped processes whose parent has gone, which would end them.
    """
    before = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_IGN)]
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


def configured(world: World, name: str) -> tuple[Path, Path]:
    """A config, and the folder of its run."""
    path = world.base / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "run": name, "ray": {"workers": 1}}))
    return path, world.base / name


def assert_ends_as_undisturbed(config: Path, root: Path, finished: Finished) -> None:
    with started(config, root) as session:
        said = session.process.communicate(timeout=300)
        assert session.process.returncode == 0, said
        assert session.left_behind() == []
    assert verify(root) == [] and diff(finished.root, root) == []
    assert [p for p in root.rglob("*") if ".tmp-" in p.name] == []


@pytest.mark.slow
def test_interrupted_in_every_step_it_goes_on_where_it_stood(finished: Finished, world: World) -> None:
    config, root = configured(world, "interrupted")
    moments = {  # what is there when the signal is sent, the signal, whether it goes to all processes as a terminal's does
        "tables/sources.parquet": (signal.SIGINT, True),  # before Ray starts, or while it does
        "ledger/faces/open/*": (signal.SIGTERM, False),
        "ledger/motion/open/*": (signal.SIGINT, False),
        "ledger/reenact/open/*": (signal.SIGTERM, True),
    }
    for pattern, (number, to_all) in moments.items():
        with started(config, root) as session:
            session.wait_for(pattern)
            (os.killpg if to_all else os.kill)(session.process.pid, number)
            out, err = session.process.communicate(timeout=100)
            assert session.process.returncode == 128 + number, (pattern, out, err)
            assert out.endswith("stopped; the same command goes on where it stood\n") and err == "", (pattern, out, err)
            assert session.left_behind() == [], pattern
            with exclusive(root):
                assert not (root / "shards").exists()
    assert_ends_as_undisturbed(config, root, finished)


def test_interrupted_between_two_shards_it_packs_the_same(finished: Finished, world: World) -> None:
    class Impatient(Silent):
        def say(self, text: str) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    root = world.base / "unpacked"
    shutil.copytree(finished.root, root)
    shutil.rmtree(root / "shards")
    with pytest.raises(KeyboardInterrupt), interruptible():
        world.run("unpacked", Impatient())
    assert [p.name for p in (root / "shards/meshwarp").iterdir()] == ["train-000000.tar"]
    world.run("unpacked")
    assert verify(root) == [] and diff(finished.root, root) == []


def test_an_interrupt_that_a_library_swallows_comes_again() -> None:
    began = time.monotonic()
    with pytest.raises(Terminated), interruptible():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        time.sleep(20)
    assert time.monotonic() - began < 10
    time.sleep(4)  # and not once more when it was heard


def test_what_was_ignored_is_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible(), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


def test_an_interrupt_waits_for_what_must_not_be_broken_off() -> None:
    heard: list[str] = []
    for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
        with pytest.raises(kind), interruptible():
            with uninterrupted():
                os.kill(os.getpid(), number)
                time.sleep(0.1)
                heard.append("whole")
            heard.append("never")
    with pytest.raises(Terminated), interruptible(), uninterrupted():
        sys.exit(1)  # as Ray's handler of SIGTERM, which its start puts in place of ours
    assert heard == ["whole", "whole"]


@pytest.mark.slow
def test_a_second_run_stops_and_what_a_killed_one_leaves_does_not_block(finished: Finished, world: World) -> None:
    """The workers outlive the driver, held by SIGSTOP, and wake up in the middle of the next run."""
    config, root = configured(world, "contended")
    with started(config, root) as first:
        first.wait_for("ledger/faces/open/*")
        orphans = [p for p in first.alive() if p.pid != first.process.pid]
        for process in orphans:  # now the first run does not end while others try
            process.suspend()
        for command in (("run", config), ("retry", root)):
            done = crosspair(*command)
            assert done.returncode == 2 and done.stderr.endswith("another crosspair process works on this run; wait for it or stop it\n")
            assert done.stderr.count("\n") == 1
        first.process.kill()
        first.process.wait()
        orphans = [p for p in first.alive() if "ray::" in " ".join(p.cmdline())]
        assert orphans
        for process in orphans:  # again: the kernel wakes what is stopped in a process group whose last parent has gone
            process.suspend()
        assert all(".lock" not in str(fd.readlink()) for p in orphans for fd in Path(f"/proc/{p.pid}/fd").iterdir())
        assert crosspair("retry", root).returncode == 0
        with started(config, root) as second:
            second.wait_for("ledger/*/open/*")
            for process in orphans:
                with suppress(psutil.Error):
                    process.resume()
            out, err = second.process.communicate(timeout=300)
            assert second.process.returncode == 0, (out, err)
        assert first.left_behind() == []
    assert_ends_as_undisturbed(config, root, finished)


def crosspair(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run([*CROSSPAIR, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment)
