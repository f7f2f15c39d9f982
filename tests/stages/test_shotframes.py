"""A shot's frames come as they are in the file, whatever of them was kept, in whatever stretches."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faceclips import noise, write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import shotframes
from stages.ingest import Timing, frames_at_rate
from stages.media import decode
from stages.shotframes import ShotFrames


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Timing, np.ndarray]:
    """30 frames, of which the map shows some twice and leaves some out."""
    path = write_clip(tmp_path_factory.mktemp("film") / "a.mp4", noise(30, (64, 64)))
    shown = list(decode(path))
    timing = Timing(np.array([f.pts for f in shown]), np.array([f.time_s for f in shown]))
    return path, timing, np.array([2, 3, 3, 3, 5, 6, 8, 9, 9, 11, 12, 13, 14, 14, 17, 20, 21, 22, 22, 25], np.int32)


def frame_bytes(path: Path) -> int:
    return sum(plane.buffer_size for plane in next(decode(path)).raw.planes)


def numbers(frames: Iterator[tuple[int, object]]) -> list[tuple[int, int]]:
    return [(k, frame.index) for k, frame in frames]  # type: ignore[attr-defined]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    kept=st.integers(0, 25),
    surveyed=st.booleans(),
    stretches=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted), max_size=5),
)
def test_any_stretch_is_a_part_of_the_map(
    film: tuple[Path, Timing, np.ndarray], monkeypatch: pytest.MonkeyPatch, kept: int, surveyed: bool, stretches: list[list[int]]
) -> None:
    path, timing, source_frames = film
    monkeypatch.setattr(shotframes, "_KEPT_BYTES", kept * frame_bytes(path))
    frames = ShotFrames(path, timing, source_frames)
    if surveyed:
        assert numbers(frames.all()) == list(enumerate(source_frames.tolist()))
    for first, stop in stretches:
        assert numbers(frames.stretch(first, stop)) == list(enumerate(source_frames[first:stop].tolist()))


@pytest.mark.parametrize(("frames_that_fit", "kept"), [(15, 20), (14, 0)])
def test_what_is_kept_has_a_bound_and_no_rgb_picture(
    film: tuple[Path, Timing, np.ndarray], monkeypatch: pytest.MonkeyPatch, frames_that_fit: int, kept: int
) -> None:
    """15 frames of the film are shown, some of them twice."""
    path, timing, source_frames = film
    monkeypatch.setattr(shotframes, "_KEPT_BYTES", frames_that_fit * frame_bytes(path))
    frames = ShotFrames(path, timing, source_frames)
    for _, frame in frames.all():
        assert frame.rgb.shape == (64, 64, 3)
    assert len(frames._kept) == kept
    shown = [frame for _, frame in frames.stretch(0, 20)][:6]
    assert [f.index for f in shown] == [2, 3, 3, 3, 5, 6] and shown[1] is shown[3]
    assert not any("rgb" in f.__dict__ for f in shown)


def test_a_turned_frame_is_not_kept_twice(film: tuple[Path, Timing, np.ndarray]) -> None:
    frame = replace(next(decode(film[0])), turn=(0, 1, -1, 0))
    part = frame.square(2, 4, 10)
    assert "rgb" not in frame.__dict__
    np.testing.assert_array_equal(part, frame.rgb[4:14, 2:12])


def test_stretches_in_a_row_are_decoded_once(film: tuple[Path, Timing, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    path, timing, source_frames = film
    begun: list[int] = []

    def counted(path: Path, timing: Timing, part: np.ndarray) -> Iterator[tuple[int, object]]:
        begun.append(int(part[0]))
        return frames_at_rate(path, timing, part)

    monkeypatch.setattr(shotframes, "frames_at_rate", counted)
    monkeypatch.setattr(shotframes, "_KEPT_BYTES", 0)
    frames = ShotFrames(path, timing, source_frames)
    for first, stop in ((0, 5), (5, 9), (12, 15), (3, 4)):
        assert len(numbers(frames.stretch(first, stop))) == stop - first
    assert begun == [2, 14, 3]


def test_a_frame_that_is_let_go_leaves_memory_at_once(film: tuple[Path, Timing, np.ndarray]) -> None:
    """PyAV ties a frame whose side data was asked for into a cycle, and with it the memory of its whole decoder."""
    first = next(decode(film[0]))
    assert not [r for r in gc.get_referrers(first.raw) if type(r).__name__ == "SideDataContainer"]
