"""Ingest: where a file is cut, when each frame is shown, which frame stands at each tick, and the sound."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from faceclips import AUDIO_HZ, click, moving_face, noise, tone, write_clip
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import file_digest, source_id
from schemas.outcomes import Rejection
from schemas.store import DiskStore
from schemas.units import Shot, SourceFile
from stages.ingest import SOUND, Ingest, IngestConfig, Timing, frame_map, frames_at_rate, settle_times, shot_bounds, source_rate
from stages.outputs import Outputs


def source(path: Path) -> SourceFile:
    return SourceFile(id=source_id(str(path)), uri=str(path), identity="i", licence="", consent="")


def ingest(path: Path, root: Path, **config: int) -> tuple[dict, list[Shot], Outputs]:
    out = Outputs(DiskStore(root), f"artifacts/ingest/{path.stem}")
    return *Ingest(IngestConfig(**config))(source(path), out), out


gaps = st.lists(st.floats(0.0, 0.4), min_size=1, max_size=60)


@given(gaps, st.sampled_from([12, 24, 25, 30, 60]), st.floats(0, 1000))
def test_a_frame_map_is_monotone_and_in_range(gaps: list[float], fps: int, start: float) -> None:
    times = start + np.concatenate([[0.0], np.cumsum(gaps)])
    frames = frame_map(times, 0, len(times) - 1, fps)
    assert frames.dtype == np.int32
    if len(frames):
        assert frames[0] == np.searchsorted(times - times[0], 1e-3, side="right") - 1
        assert (np.diff(frames) >= 0).all()
        assert frames[-1] < len(times)
    assert abs(len(frames) - (times[-1] - times[0] + np.median(gaps)) * fps) <= 1


@given(gaps, st.sampled_from([12, 25, 60]))
def test_each_tick_shows_the_frame_that_is_on_screen(gaps: list[float], fps: int) -> None:
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    for k, frame in enumerate(frame_map(times, 0, len(times) - 1, fps)):
        assert times[frame] <= k / fps + 2e-3
        assert frame + 1 == len(times) or times[frame + 1] > k / fps


@given(st.integers(1, 400), st.sampled_from([12, 23.976, 25, 29.97, 30, 59.94]), st.floats(0, 5000), st.integers(0, 3))
def test_equal_rates_map_frame_to_frame(frames: int, fps: float, start: float, digits: int) -> None:
    """Even where the container rounds its time stamps to a millisecond."""
    whole = round(fps)
    times = start + np.round(np.arange(frames) / whole, 3 + digits)
    np.testing.assert_array_equal(frame_map(times, 0, frames - 1, whole), np.arange(frames))


def test_a_shot_is_mapped_from_its_own_first_frame() -> None:
    times = np.arange(100) / 50
    np.testing.assert_array_equal(frame_map(times, 40, 59, 25), np.arange(40, 60, 2))


def test_double_rate_repeats_and_half_rate_drops() -> None:
    times = np.arange(6) / 25
    assert frame_map(times, 0, 5, 50).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert frame_map(np.arange(6) / 50, 0, 5, 25).tolist() == [0, 2, 4]


def test_a_single_frame_is_one_frame() -> None:
    assert frame_map(np.array([3.0]), 0, 0, 25).tolist() == [0]
    assert source_rate(np.array([3.0])) == 0.0


def test_a_cut_is_found_where_it_is(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [*moving_face(frames=20), *noise(15), *moving_face("hopper", 20)])
    data, shots, _ = ingest(path, tmp_path)
    assert data["frames"] == 55
    assert [(s.first_frame, s.last_frame) for s in shots] == [(0, 19), (20, 34), (35, 54)]
    assert len({s.id for s in shots}) == 3
    assert {s.content for s in shots} == {data["content"]} == {file_digest(path)}


def test_a_moving_face_has_no_cut(tmp_path: Path) -> None:
    _, shots, _ = ingest(write_clip(tmp_path / "a.mp4", moving_face(frames=60)), tmp_path)
    assert [(s.first_frame, s.last_frame) for s in shots] == [(0, 59)]


def test_the_cuts_of_a_real_clip_are_found(shared: Path, tmp_path: Path) -> None:
    """MANIFEST: the first frame of each new shot is 20, 82, 211."""
    _, shots, _ = ingest(shared / "realdata/clips/face_recognition_short_hamilton_clip.mp4", tmp_path)
    found = [s.first_frame for s in shots[1:]]
    for cut in (20, 82, 211):
        assert min(abs(cut - f) for f in found) <= 2, found
    assert len(found) <= 4, found


def test_what_was_measured_is_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=30, wh=(96, 64)), 30, sound=tone(1.0))
    data, _, out = ingest(path, tmp_path)
    assert (data["width"], data["height"], data["frames"], data["has_audio"]) == (96, 64, 30, True)
    assert data["fps"] == pytest.approx(30, rel=0.01)
    assert (data["size_bytes"], data["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert set(out.digests) == {"timing.npz", SOUND}
    assert abs(out.path(SOUND).stat().st_size / 2 / AUDIO_HZ - 1.0) < 0.1


def test_uneven_time_stamps_are_kept(tmp_path: Path) -> None:
    times = [0, 40, 80, 400, 440, 480, 1200, 1240]
    path = write_clip(tmp_path / "a.mkv", noise(8, (64, 64)), times_ms=times, container="matroska")
    _, shots, out = ingest(path, tmp_path)
    timing = Timing.read(out.path("timing.npz"))
    np.testing.assert_allclose(timing.times, np.array(times) / 1000, atol=1e-6)
    shown = frame_map(timing.times, shots[0].first_frame, shots[0].last_frame, 25)
    assert shown[:12].tolist() == [0, 1, *[2] * 8, 3, 4]


def sound_of(out: Outputs) -> np.ndarray:
    return np.abs(np.frombuffer(out.path(SOUND).read_bytes(), "<i2").astype(int))


def test_a_little_disorder_is_sorted() -> None:
    times, jumps, sound_until_s = settle_times(np.array([0.0, 0.12, 0.08, 0.04, 0.16]))
    np.testing.assert_allclose(times, [0, 0.04, 0.08, 0.12, 0.16])
    assert (jumps, sound_until_s) == ([], 0.16)


@pytest.mark.parametrize(
    ("stamps", "jumps", "last_s", "sound_until_s"),
    [
        ([0.0, 0.3, 0.6, 0.9, 0.0, 0.3], [4], 4.2, 0.9),  # joined by cat
        ([0.0, 0.1, 90_000.0, 90_000.1], [2], 3.2, 0.1),
        ([0.0, 0.1, 5.1, 5.2], [2], 5.2, 5.2),  # a pause that ffmpeg keeps
        ([0.0, 0.1, 50.0, 0.2, 0.3], [2, 3], 6.2, 0.1),  # one wrong stamp
        ([0.0, 0.1, 0.0, 9.0, 0.1], [3, 4], 12.0, 9.0),
    ],
)
def test_a_clock_that_jumps_begins_a_new_shot(stamps: list[float], jumps: list[int], last_s: float, sound_until_s: float) -> None:
    times, found, until_s = settle_times(np.array(stamps))
    assert found == jumps and (np.diff(times) >= 0).all()
    assert (times[-1], until_s) == (pytest.approx(last_s), pytest.approx(sound_until_s))


@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=80))
def test_whatever_the_clock_says_shots_are_bounded(stamps: list[float]) -> None:
    times, jumps, sound_until_s = settle_times(np.array(stamps))
    assert (np.diff(times) >= 0).all() and times[0] <= sound_until_s <= times[-1]
    for a, b in pairwise(shot_bounds(times, set(jumps))):
        assert len(frame_map(times, a, b - 1, 25)) <= 25 * 2.01 * (b - a)


def test_a_long_shot_is_cut_evenly() -> None:
    times = np.arange(0, 1500, 0.5)
    bounds = shot_bounds(times, {4})
    assert bounds[:2] == [0, 4] and bounds[-1] == len(times)
    lengths = np.diff(bounds[1:])
    assert len(lengths) == 3 and np.ptp(lengths) <= 1


def test_b_frames_in_avi_are_all_shown(tmp_path: Path) -> None:
    """Their time stamps come in the order of decoding."""
    path = tmp_path / "a.avi"
    command = ["-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=4", "-c:v", "libx264", "-bf", "3", str(path)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command], check=True)
    _, shots, out = ingest(path, tmp_path)
    timing = Timing.read(out.path("timing.npz"))
    assert len(shots) == 1
    shown = frame_map(timing.times, 0, 99, 25)
    assert abs(len(shown) - 100) <= 2 and len(set(shown.tolist())) >= 98
    whole = [f.rgb for _, f in frames_at_rate(path, timing, shown)]
    for first in (20, 51, 52, 53, 70):
        for k, frame in frames_at_rate(path, timing, shown[first : first + 5]):
            np.testing.assert_array_equal(frame.rgb, whole[first + k])


def test_two_streams_joined_are_two_shots_and_all_frames(tmp_path: Path) -> None:
    """The second one's clock starts again, so nobody knows where its sound lies: it gets none."""
    parts = [
        write_clip(tmp_path / f"{who}.ts", moving_face(who, 40, wh=(96, 96), face_px=40), sound=tone(1.6), container="mpegts")
        for who in ("astronaut", "hopper")
    ]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    data, shots, out = ingest(path, tmp_path)
    assert [(s.first_frame, s.last_frame) for s in shots] == [(0, 39), (40, 79)]
    assert data["fps"] == pytest.approx(25, rel=0.02)
    timing = Timing.read(out.path("timing.npz"))
    for shot in shots:
        assert len(frame_map(timing.times, shot.first_frame, shot.last_frame, 25)) == 40
    assert len(sound_of(out)) / AUDIO_HZ < timing.times[40]


def test_a_day_without_a_frame_is_no_day_of_frames(tmp_path: Path) -> None:
    hours = 25 * 3_600_000
    times = [*range(0, 400, 40), *range(hours, hours + 400, 40)]
    path = write_clip(tmp_path / "a.mkv", noise(20, (64, 64)), times_ms=times, sound=tone(0.4), container="matroska")
    _, shots, out = ingest(path, tmp_path)
    assert [s.first_frame for s in shots] == [0, 10]
    timing = Timing.read(out.path("timing.npz"))
    assert len(frame_map(timing.times, 10, 19, 25)) == 10
    assert len(sound_of(out)) < 2 * AUDIO_HZ


def test_sound_after_a_pause_lies_where_the_picture_has_it(tmp_path: Path) -> None:
    times = [*range(0, 400, 40), *range(5400, 6400, 40)]
    for container in ("mpegts", "matroska"):
        path = write_clip(tmp_path / f"a.{container}", noise(35, (64, 64)), times_ms=times, sound=click(5.8, 6.4), container=container)
        _, shots, out = ingest(path, tmp_path)
        assert [s.first_frame for s in shots] == [0, 10]
        assert np.flatnonzero(sound_of(out) > 5000)[0] / AUDIO_HZ == pytest.approx(
            5.8, abs=0.08
        )  # AAC begins 64 ms late where the container does not say so


def test_a_file_that_changes_while_it_is_looked_through_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", noise(6, (64, 64)))
    other = write_clip(tmp_path / "b.mp4", noise(9, (64, 64)))
    look = Ingest._look_through
    monkeypatch.setattr(Ingest, "_look_through", lambda self, p: look(self, other.replace(p)))
    with pytest.raises(ValueError, match=r"a\.mp4: changed since it was looked through"):
        ingest(path, tmp_path)


def test_ffmpeg_gives_up_before_the_unit_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = tmp_path / "ffmpeg"
    hung.write_text("#!/bin/sh\nexec sleep 30\n")
    hung.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(hung))
    path = write_clip(tmp_path / "a.mp4", noise(6, (64, 64)), sound=tone(0.3))
    with pytest.raises(subprocess.TimeoutExpired) as e:
        Ingest(IngestConfig())(source(path), Outputs(DiskStore(tmp_path), "a", seconds=1.0))
    assert e.value.timeout <= 0.5


def test_frames_come_at_the_rate_of_the_map(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=40, wh=(64, 64)))
    _, _, out = ingest(path, tmp_path)
    timing = Timing.read(out.path("timing.npz"))
    wanted = np.array([17, 17, 18, 21, 21, 21, 30], np.int32)
    got = [(k, f.index, round(f.time_s * 25)) for k, f in frames_at_rate(path, timing, wanted)]
    assert got == [(k, f, f) for k, f in enumerate(wanted)]


@pytest.mark.parametrize("broken", [np.zeros(40, np.int64), np.full(40, -1, np.int64)])
def test_frames_of_files_with_broken_time_stamps_are_counted(tmp_path: Path, broken: np.ndarray) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=40, wh=(64, 64)))
    got = [f.index for _, f in frames_at_rate(path, Timing(broken, np.arange(40) / 25), np.array([20, 21, 25]))]
    assert got == [20, 21, 25]


def test_a_file_that_became_shorter_is_a_rejection(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=10, wh=(64, 64)))
    with pytest.raises(Rejection) as e:
        list(frames_at_rate(path, Timing(np.arange(40), np.arange(40) / 25), np.array([5, 20])))
    assert e.value.reason == "decode_error"


def test_late_sound_lies_where_the_picture_has_it(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", noise(50, (64, 64)), sound=click(0.3, 1.0), sound_from_s=0.6)
    _, _, out = ingest(path, tmp_path)
    sound = np.abs(np.frombuffer(out.path(SOUND).read_bytes(), "<i2").astype(int))
    assert np.flatnonzero(sound > 5000)[0] / AUDIO_HZ == pytest.approx(0.9, abs=0.03)


def test_a_stream_that_nobody_uses_moves_neither_sound_nor_picture(tmp_path: Path) -> None:
    """As a second language of a broadcast that begins a second earlier."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-itsoffset", "1", "-f", "lavfi", "-i", "testsrc=s=64x64:r=25:d=3"]
    command += ["-itsoffset", "1", "-f", "lavfi", "-i", "aevalsrc='0.5*sin(2765*t)*gt(t,1)':d=3:s=16000", "-f", "lavfi", "-i", "sine=d=4"]
    command += ["-map", "0:v", "-map", "1:a", "-map", "2:a", "-c:v", "mpeg2video", "-c:a", "mp2"]
    subprocess.run([*command, str(tmp_path / "a.ts")], check=True)
    _, (shot,), out = ingest(tmp_path / "a.ts", tmp_path)
    first_s = Timing.read(out.path("timing.npz")).times[shot.first_frame]
    assert np.flatnonzero(sound_of(out) > 5000)[0] / AUDIO_HZ - first_s == pytest.approx(1.0, abs=0.04)


_EVEN_MS = list(range(0, 2000, 40))
_UNEVEN_MS = [0, 40, 80, 200, 240, 400, 410, 420, 430, *range(600, 2000, 40)]


@pytest.mark.parametrize("times_ms", [_EVEN_MS, _UNEVEN_MS], ids=["even", "uneven"])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(("sound_s", "late_s"), [(1.5, 0.0), (2.5, 0.0), (1.5, 0.3), (2.5, 0.3), (2.0, 0.0)])
def test_sound_and_picture_of_a_shot_agree(tmp_path: Path, times_ms: list[int], container: str, sound_s: float, late_s: float) -> None:
    """Frames at the rate of the sample take as long as the shot, and what sound there is lies under the same times."""
    path = write_clip(
        tmp_path / "a.mkv",
        noise(len(times_ms), (64, 64)),
        times_ms=times_ms,
        sound=click(sound_s - 0.4, sound_s),
        sound_from_s=late_s,
        container=container,
    )
    data, (shot,), out = ingest(path, tmp_path)
    timing = Timing.read(out.path("timing.npz"))
    shown = frame_map(timing.times, shot.first_frame, shot.last_frame, 25)
    assert data["frames"] == len(times_ms) and abs(len(shown) / 25 - 2.0) <= 0.04
    assert [f.index for _, f in frames_at_rate(path, timing, shown)] == shown.tolist()
    heard = sound_of(out)
    at_s = np.flatnonzero(heard > 5000)[0] / AUDIO_HZ
    assert at_s == pytest.approx(late_s + sound_s - 0.4, abs=0.03 if container == "mp4" else 0.08)  # AAC's first 64 ms, as above
    assert len(heard) / AUDIO_HZ == pytest.approx(late_s + sound_s, abs=0.13)  # AAC ends on whole blocks of 64 ms


@pytest.mark.parametrize(
    ("config", "reason"), [({"max_frame_pixels": 64 * 64 - 1}, "frame_too_large"), ({"max_frames": 5}, "too_many_frames")]
)
def test_limits_are_kept(tmp_path: Path, config: dict[str, int], reason: str) -> None:
    path = write_clip(tmp_path / "a.mp4", noise(6, (64, 64)))
    with pytest.raises(Rejection) as e:
        ingest(path, tmp_path, **config)
    assert e.value.reason == reason
    assert ingest(path, tmp_path, max_frames=6, max_frame_pixels=64 * 64)[0]["frames"] == 6


def test_nothing_is_written_beside_the_source(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "in" / "a.mp4", noise(6, (64, 64)), sound=tone(0.3))
    before = (path.stat().st_mtime_ns, file_digest(path))
    ingest(path, tmp_path / "run")
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    assert (path.stat().st_mtime_ns, file_digest(path)) == before
