"""Hostile files: each ends with a reason that was foreseen, soon, in little memory, and without a look at anything else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

sys.path.append(str(Path(__file__).parents[2]))  # campaigns/ is no part of the installed package

from campaigns.hostile import ACCEPTED, Trap, make_hostile, make_hostile_images
from pipeline.worker import bounded_memory
from schemas.ids import source_id
from schemas.outcomes import Rejection
from schemas.store import DiskStore
from schemas.units import SourceFile
from stages.ingest import Ingest, IngestConfig
from stages.outputs import Outputs
from stages.stills import read_image

_SECONDS = 20.0  # far more than any of them takes, far less than decoding a bomb
_MEMORY_GB = 0.7


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    with Trap(tmp_path_factory.mktemp("trap") / "kept") as trap:
        yield trap


@pytest.fixture(scope="module")
def hostile(trap: Trap) -> dict[Path, frozenset[str]]:
    return make_hostile(trap.folder.parent / "clips", trap)


def look(path: Path, root: Path) -> str:
    """The reason for which ingest refuses `path`; `ACCEPTED` where it takes it."""
    source = SourceFile(id=source_id(path.name), uri=str(path), identity="i", licence="", consent="")
    with bounded_memory(_MEMORY_GB):
        try:
            Ingest(IngestConfig(max_frame_pixels=4_000_000))(source, Outputs(DiskStore(root), "artifacts", seconds=2 * _SECONDS))
        except Rejection as e:
            assert str(path) in str(e)
            return e.reason
    return ACCEPTED


def test_hostile_files_end_as_foreseen(hostile: dict[Path, frozenset[str]], trap: Trap, tmp_path: Path) -> None:
    """All in one test, because the trap is one; every fault is told."""
    trap.sprung()
    faults = []
    for k, (path, allowed) in enumerate(hostile.items()):
        began = time.process_time()
        try:
            reason = look(path, tmp_path / str(k))
        except Exception as e:
            reason = f"{type(e).__name__}: {e}"
        took = time.process_time() - began
        if reason not in allowed:
            faults.append(f"{path.name!r}: {reason or 'accepted'}, not one of {sorted(allowed)}")
        if took > _SECONDS:
            faults.append(f"{path.name!r}: took {took:.0f} s")
        faults += [f"{path.name!r}: touched {what}" for what in trap.sprung()]
    assert not faults, "\n".join(faults)
    assert not list(tmp_path.rglob("pwned"))


def test_the_trap_springs(trap: Trap, hostile: dict[Path, frozenset[str]]) -> None:
    """Opened without our care, such files do reach out."""
    trap.sprung()
    folder = trap.folder.parent / "clips"
    with av.open(str(folder / "concat absolute.mp4"), options={"safe": "0"}) as container:
        assert container.streams.video
    assert trap.sprung() == [str(trap.folder / "canary.mp4")]
    with pytest.raises(av.FFmpegError):
        av.open(str(folder / "playlist address.m3u8"), options={"protocol_whitelist": "file,http,tcp"}).close()
    assert trap.sprung() == [f"{trap.url}/canary.ts"]


def test_names_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    for name in ("x" * 300 + ".mp4", "nul\0.mp4", "a/" * 3000 + "b.mp4"):
        assert look(tmp_path / name, tmp_path / "run") == "missing"


def test_hostile_stills_end_as_foreseen(tmp_path: Path) -> None:
    faults = []
    for path, allowed in make_hostile_images(tmp_path).items():
        began, reason = time.process_time(), ACCEPTED
        with bounded_memory(_MEMORY_GB):
            try:
                assert read_image(path).shape[2] == 3
            except Rejection as e:
                reason = e.reason
            except Exception as e:
                reason = f"{type(e).__name__}: {e}"
        if reason not in allowed:
            faults.append(f"{path.name}: {reason or 'accepted'}, not one of {sorted(allowed)}")
        if time.process_time() - began > _SECONDS:
            faults.append(f"{path.name}: took {time.process_time() - began:.0f} s")
    assert not faults, "\n".join(faults)
