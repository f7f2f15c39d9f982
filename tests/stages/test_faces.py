"""Faces: one person, one crop, every frame accounted for; and reasons when there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from faceclips import AUDIO_HZ, click, moving_face, noise, photograph, tone, write_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from schemas.arrays import decode_arrays
from schemas.ids import clip_id, file_digest, source_id
from schemas.outcomes import Rejection
from schemas.sample import decode_image
from schemas.store import DiskStore
from schemas.units import Clip, PortraitUnit, Shot, SourceFile
from schemas.video import decode_video
from stages.faces import AUDIO, STILL, TARGET, TRACK, TRACKS, Faces, FacesConfig, encode_track, read_track
from stages.gates import GATES, FaceGates, brightness, decide, still_frame
from stages.head import canonical
from stages.ingest import Ingest, IngestConfig, Timing, frame_map
from stages.outputs import Outputs
from stages.patch import face_patch
from stages.portraits import Portraits, portrait_of_clip
from stages.survey import Survey, covered, other_faces, overlap

SIZE, FPS = 128, 25


def source(path: Path) -> SourceFile:
    return SourceFile(id=source_id(str(path)), uri=str(path), identity="i", licence="l", consent="c")


def as_one_shot(path: Path, root: Path) -> Shot:
    """Ingested, with all cuts taken back."""
    data, shots = Ingest(IngestConfig())(source(path), Outputs(DiskStore(root), f"ingest/{path.stem}"))
    return Shot(
        id="s",
        source=source(path),
        content=data["content"],
        first_frame=0,
        last_frame=data["frames"] - 1,
        folder=shots[0].folder,
        has_sound=data["has_audio"],
    )


def faces(path: Path, root: Path, fps: int = FPS, **config: float) -> list[Clip]:
    clips: list[Clip] = Faces(FacesConfig(**config), fps, SIZE)(as_one_shot(path, root), Outputs(DiskStore(root), f"faces/{path.stem}"))[1]  # type: ignore[arg-type]
    return clips


def sound_of(clip: Clip, root: Path) -> np.ndarray:
    with av.open(str(root / clip.folder / clip.file(AUDIO))) as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, Path]:
    """A clip from 48 frames at 30 fps of a moving face, and the folder that its `folder` is relative to."""
    root = tmp_path_factory.mktemp("faces")
    path = write_clip(root / "astronaut.mp4", moving_face(frames=48), 30, sound=tone(1.6))
    (clip,) = faces(path, root)
    return clip, root


def test_the_whole_face_track_is_one_clip(made: tuple[Clip, Path]) -> None:
    clip, root = made
    assert (clip.frames, clip.fps, clip.size_px, clip.first_frame, clip.last_frame) == (40, FPS, SIZE, 0, 46)
    assert decode_video(root / clip.folder / clip.file(TARGET)).shape == (40, SIZE, SIZE, 3)
    assert clip.id == clip_id(clip.content, 0, 46, 0)


def test_the_frame_map_is_stored_with_the_clip(made: tuple[Clip, Path]) -> None:
    clip, root = made
    points, source_frames = read_track(root / clip.folder / clip.file(TRACK))
    timing = Timing.read(root / "ingest/astronaut/timing.npz")
    np.testing.assert_array_equal(source_frames, frame_map(timing.times, 0, 47, FPS))
    assert points.shape == (40, 478, 3) and points.dtype == np.float32 and np.isfinite(points).all()


def test_sound_is_as_long_as_the_picture(made: tuple[Clip, Path]) -> None:
    clip, root = made
    sound = sound_of(clip, root)
    assert clip.has_audio and len(sound) == clip.frames * AUDIO_HZ // FPS
    assert np.abs(sound[8000:9000].astype(int)).max() > 6000


def test_every_file_has_the_digest_that_is_recorded(made: tuple[Clip, Path]) -> None:
    clip, root = made
    assert set(clip.digests) == {clip.file(n) for n in (TARGET, STILL, AUDIO, TRACK)}
    assert {n: file_digest(root / clip.folder / n) for n in clip.digests} == clip.digests
    assert {p.name for p in (root / clip.folder).iterdir()} == set(clip.digests) | {TRACKS}


def test_the_still_is_a_frame_of_the_target(made: tuple[Clip, Path]) -> None:
    clip, root = made
    still = decode_image((root / clip.folder / clip.file(STILL)).read_bytes())
    np.testing.assert_array_equal(still, decode_video(root / clip.folder / clip.file(TARGET), first=clip.still_frame, count=1)[0])


def test_the_face_stands_in_the_crop_with_headroom(made: tuple[Clip, Path]) -> None:
    clip, root = made
    points, _ = read_track(root / clip.folder / clip.file(TRACK))
    assert (points[..., :2] > 0).all() and (points[..., :2] < SIZE).all()
    x0, y0, side = clip.crop
    assert min(x0, y0) >= 0 and max(x0, y0) + side <= 320 and side % 2 == 0
    assert clip.scores["face_px"] == pytest.approx(np.ptp(points[..., 1], 1).mean() * side / SIZE, rel=0.05)
    assert decide(clip.scores, FaceGates()).accepted


def test_the_same_clip_is_the_same_bytes_after_another_one(made: tuple[Clip, Path], tmp_path: Path) -> None:
    """A worker's earlier units leave no trace in its later ones."""
    clip, root = made
    stage = Faces(FacesConfig(), FPS, SIZE)
    other = write_clip(tmp_path / "hopper.mp4", moving_face("hopper", 32))
    stage(as_one_shot(other, tmp_path), Outputs(DiskStore(tmp_path), "faces/hopper"))
    out = Outputs(DiskStore(tmp_path), "faces/again")
    (again,) = stage(as_one_shot(root / "astronaut.mp4", tmp_path), out)[1]
    assert again.digests == clip.digests


def test_a_clip_ends_where_the_face_does(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [*moving_face(frames=40), *noise(30)])
    (clip,) = faces(path, tmp_path)
    assert clip.first_frame == 0 and abs(clip.last_frame - 39) <= 1


def test_a_face_that_comes_again_is_a_second_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [*moving_face(frames=32), *noise(7), *moving_face(frames=32)], sound=tone(2.8))
    clips = faces(path, tmp_path)
    assert len({c.id for c in clips}) == len(clips) == 2
    assert [abs(c.first_frame - f) <= 1 for c, f in zip(clips, (0, 39), strict=True)] == [True, True]
    for clip in clips:
        assert len(sound_of(clip, tmp_path)) == clip.frames * AUDIO_HZ // FPS


def test_a_face_that_comes_again_late_is_another_track(tmp_path: Path) -> None:
    """Gone for longer than two looks: nothing of it is lost."""
    path = write_clip(tmp_path / "a.mp4", [*moving_face(frames=32), *noise(12), *moving_face("hopper", 32)])
    clips = faces(path, tmp_path, survey_every=5)
    assert [c.track for c in clips] == [0, 1]
    assert [c.id for c in clips] == [clip_id(c.content, c.first_frame, c.last_frame, c.track) for c in clips]
    assert clips[0].last_frame <= 31 and 44 <= clips[1].first_frame <= 46


def test_no_frame_belongs_to_two_tracks(tmp_path: Path) -> None:
    """The other person comes between two looks, at another place."""
    left, right = (
        [np.roll(p, x, 1) for p in moving_face(who, 33, wh=(400, 300), face_px=110)] for who, x in (("astronaut", -90), ("hopper", 90))
    )
    clips = faces(write_clip(tmp_path / "a.mp4", [*left, *right]), tmp_path)
    assert [c.track for c in clips] == [0, 1]
    assert clips[0].last_frame <= 32 < clips[1].first_frame


def test_a_file_that_is_another_one_by_now_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=32))
    shot = as_one_shot(path, tmp_path)
    stage = Faces(FacesConfig(), FPS, SIZE)
    stage(shot, Outputs(DiskStore(tmp_path), "faces/before"))
    write_clip(tmp_path / "b.mp4", moving_face("hopper", 32)).replace(path)
    with pytest.raises(ValueError, match=r"a\.mp4: changed since it was looked through; run again"):
        stage(shot, Outputs(DiskStore(tmp_path), "faces/after"))


def test_a_file_that_is_replaced_while_it_is_cut_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the new one is so short that its cutting is refused."""
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=32))
    shot, other = as_one_shot(path, tmp_path), write_clip(tmp_path / "b.mp4", moving_face("hopper", 9))
    spans = Faces._spans
    monkeypatch.setattr(Faces, "_spans", lambda *args: other.replace(path) and spans(*args))
    with pytest.raises(ValueError, match="changed since") as e:
        Faces(FacesConfig(), FPS, SIZE)(shot, Outputs(DiskStore(tmp_path), "faces/a"))
    assert not isinstance(e.value, Rejection)


def test_a_touched_file_is_the_same_file(made: tuple[Clip, Path]) -> None:
    _, root = made
    shot, stage = as_one_shot(root / "astronaut.mp4", root), Faces(FacesConfig(), FPS, SIZE)
    stage._check_content(root / "astronaut.mp4", shot.content)
    (root / "astronaut.mp4").touch()
    stage._check_content(root / "astronaut.mp4", shot.content)


def test_only_frames_that_are_looked_at_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    monkeypatch.setattr("stages.media._to_rgb", lambda raw, *_: converted.append(raw.pts) or np.zeros((64, 64, 3), np.uint8))
    path = write_clip(tmp_path / "a.mp4", noise(40, (64, 64)))
    shot = as_one_shot(path, tmp_path)
    converted.clear()
    with pytest.raises(Rejection):
        Faces(FacesConfig(survey_every=5), FPS, SIZE)(shot, Outputs(DiskStore(tmp_path), "faces/a"))
    assert len(converted) == 8


def test_a_clip_that_begins_in_the_dark_is_too_dark() -> None:
    luma = np.r_[np.full(3, 4.0), np.full(97, 120.0)]
    assert brightness(luma) < FaceGates().min_brightness < brightness(luma[3:])


def test_a_jump_to_another_place_is_another_clip(tmp_path: Path) -> None:
    """Within one shot, as a missed cut would make it."""
    moved = [np.roll(p, 180, 1) for p in moving_face(frames=32, wh=(400, 300), face_px=110)]
    path = write_clip(tmp_path / "a.mp4", [*(np.roll(p, -60, 1) for p in moving_face(frames=32, wh=(400, 300), face_px=110)), *moved])
    for clip in faces(path, tmp_path):
        points, _ = read_track(tmp_path / clip.folder / clip.file(TRACK))
        steps = np.linalg.norm(np.diff(points[..., :2].mean(1), axis=0), axis=1)
        assert steps.max() < 0.35 * np.ptp(points[0, :, 1])


def test_another_person_in_the_same_place_is_another_clip(tmp_path: Path) -> None:
    """At a cut that nobody marked."""
    path = write_clip(tmp_path / "a.mp4", [*moving_face("astronaut", 40), *moving_face("hopper", 40)])
    clips = faces(path, tmp_path)
    assert [(c.first_frame, c.last_frame) for c in clips] == [(0, 39), (40, 79)]


def test_one_person_is_one_clip_whatever_the_light_does(tmp_path: Path) -> None:
    """A lamp that goes on is no other face."""
    path = write_clip(tmp_path / "a.mp4", (p if k < 30 else (p * 0.5).astype(np.uint8) for k, p in enumerate(moving_face(frames=60))))
    (clip,) = faces(path, tmp_path)
    assert clip.frames == 60


def test_of_two_people_the_larger_has_clips_and_with_everyone_both(tmp_path: Path) -> None:
    left, right = (list(moving_face(who, 32, wh=(300, 300), face_px=px)) for who, px in (("astronaut", 110), ("hopper", 90)))
    path = write_clip(tmp_path / "a.mp4", (np.concatenate(p, 1) for p in zip(left, right, strict=True)))
    (main,) = faces(path, tmp_path)
    assert main.crop[0] < 150
    both = Faces(FacesConfig(everyone=True), FPS, SIZE)(as_one_shot(path, tmp_path), Outputs(DiskStore(tmp_path), "faces/both"))[1]
    assert len({c.id for c in both}) == len({c.track for c in both}) == 2
    assert {(c.first_frame, c.last_frame) for c in both} == {(0, 31)}
    assert min(c.crop[0] for c in both) < 150 < max(c.crop[0] + c.crop[2] / 2 for c in both)


def test_every_face_of_a_shot_stands_in_its_tracks(tmp_path: Path) -> None:
    left, right = (moving_face(who, 32, wh=(300, 300), face_px=px) for who, px in (("astronaut", 110), ("hopper", 90)))
    path = write_clip(tmp_path / "a.mp4", (np.concatenate(p, 1) for p in zip(left, right, strict=True)))
    (clip,) = faces(path, tmp_path)
    tracks = decode_arrays((tmp_path / clip.folder / TRACKS).read_bytes(), what="tracks")
    assert {(int(t), int(k)) for t, k in zip(tracks["track"], tracks["frame"], strict=True)} == {
        (t, k) for t in (0, 1) for k in range(0, 32, FacesConfig().survey_every)
    }
    assert (tracks["box"][tracks["track"] == 1][:, 0] > 300).all() and not tracks["hidden"].any()


def test_faces_too_small_to_be_cut_say_how_large_they_are(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=32))
    with pytest.raises(Rejection, match=r"no face larger than 1\d\d px") as e:
        faces(path, tmp_path, min_track_px=200)
    assert e.value.reason == "face_too_small" and 100 < e.value.scores["face_px"] < 140


def test_a_hand_covers_what_lies_under_it_and_no_face_is_its_own_hand() -> None:
    mesh = (100 * canonical() + 200).astype(np.float32)
    mouth, wrist = mesh[[61, 291, 0, 17], :2].mean(0), mesh[152, :2] + [0, 90]
    across = np.linspace(wrist, mouth - [0, 10], 21) + np.r_[np.tile([[-25.0, 0], [25, 0]], (10, 1)), [[0, 0]]]
    assert covered([across], mesh) > 0.5
    assert covered([across + np.array([120, 0])], mesh) == 0
    assert covered([], mesh) == 0
    assert covered([mesh[:21, :2].astype(float)], mesh) == 0  # all of it within the face


def test_other_faces_count_where_they_are_large_and_in_the_crop() -> None:
    main, crop = np.array([0.0, 0, 100, 100]), (0, 0, 300)
    beside, small, outside, none = ([150.0, 0, 250, 100], [150.0, 0, 190, 40], [400.0, 0, 500, 100], np.zeros((0, 4)))
    looks = [(main, np.array([beside])), (main, np.array([small])), (main, np.array([outside])), (main, none)]
    assert other_faces(looks, crop) == 0.25
    assert other_faces([], crop) == 0.0


def test_everyones_clips_share_no_frame_where_one_track_follows_another(tmp_path: Path) -> None:
    """She jumps farther than a track reaches."""
    a = list(moving_face(frames=55, wh=(500, 300), face_px=110))
    path = write_clip(tmp_path / "a.mp4", [*(np.roll(p, -90, 1) for p in a), *(np.roll(p, 90, 1) for p in a)])
    first, second = Faces(FacesConfig(everyone=True), FPS, SIZE)(as_one_shot(path, tmp_path), Outputs(DiskStore(tmp_path), "faces/a"))[1]
    assert first.last_frame < second.first_frame


def test_parts_that_would_be_too_short_become_as_long_as_they_may(tmp_path: Path) -> None:
    stage = Faces(FacesConfig(min_clip_s=8.0, max_clip_s=10.0), FPS, SIZE)
    assert stage._spans(0, 260, 200) == [(0, 250)]
    assert stage._spans(5, 505, 200) == [(5, 255), (255, 505)]
    with pytest.raises(ValueError, match="max_clip_s not below it"):
        FacesConfig(min_clip_s=2.0, max_clip_s=1.0)


@given(st.integers(0, 1000), st.integers(1, 3000), st.integers(1, 60), st.integers(1, 300))
def test_parts_are_in_order_within_bounds_and_of_allowed_length(first: int, length: int, min_frames: int, more: int) -> None:
    config = FacesConfig(min_clip_s=min_frames / FPS, max_clip_s=(min_frames + more) / FPS)
    spans = Faces._spans(SimpleNamespace(config=config, fps=FPS), first, first + length, min_frames)  # type: ignore[arg-type]
    assert all(min_frames <= b - a <= min_frames + more for a, b in spans)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert not spans or (spans[0][0] == first and spans[-1][1] <= first + length)
    assert sum(b - a for a, b in spans) > length - min_frames  # what is left is too short for a clip


def test_long_tracks_become_several_clips_without_a_gap(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=75), sound=tone(3.0))
    clips = faces(path, tmp_path, max_clip_s=1.2)
    assert len(clips) == 3
    for before, after in pairwise(clips):
        assert after.first_frame - before.last_frame in (1, 2)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], Path]:
    """A slide show: each frame stays for 1.9 s, longer than a clip may be; a click after 2.5 s."""
    root = tmp_path_factory.mktemp("held")
    path = write_clip(root / "a.mp4", moving_face(frames=6), times_ms=range(0, 11_400, 1900), sound=click(2.5, 11.4))
    return faces(path, root, fps=12, max_clip_s=1.25), root


def test_clips_of_one_held_frame_are_different_clips(held: tuple[list[Clip], Path]) -> None:
    clips, root = held
    assert len(clips) > 6
    assert len({c.id for c in clips}) == len(clips)
    for clip in clips:
        assert {n: file_digest(root / clip.folder / n) for n in clip.digests} == clip.digests


def test_sound_belongs_to_the_clips_own_time_not_to_its_frames(held: tuple[list[Clip], Path]) -> None:
    clips, root = held
    loud = [k for k, clip in enumerate(clips) if clip.has_audio and np.abs(sound_of(clip, root).astype(int)).max() > 5000]
    assert len(loud) == 1
    before_s = sum(c.frames for c in clips[: loud[0]]) / 12
    at = np.flatnonzero(np.abs(sound_of(clips[loud[0]], root).astype(int)) > 5000)[0] / AUDIO_HZ
    assert before_s + at == pytest.approx(2.5, abs=0.15)


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        (lambda: noise(40), "no_face"),
        (lambda: moving_face(frames=10), "too_short"),
        (lambda: [*moving_face(frames=15), *noise(30)], "lost_face"),
    ],
)
def test_what_gives_no_clip_says_why(tmp_path: Path, pictures, reason: str) -> None:
    path = write_clip(tmp_path / "a.mp4", pictures())
    with pytest.raises(Rejection) as e:
        faces(path, tmp_path)
    assert e.value.reason == reason


GOOD = {
    "face_px": 200.0,
    "crop_scale": 2.2,
    "upscale": 1.0,
    "yaw_deg": 0.0,
    "pitch_deg": 0.0,
    "roll_deg": 0.0,
    "yaw_extreme_deg": 10.0,
    "pitch_extreme_deg": 10.0,
    "roll_extreme_deg": 10.0,
    "brightness": 100.0,
    "other_faces": 0.0,
    "hidden": 0.0,
    "border_contact": 0.0,
    "headroom": 0.5,
    "iris_contrast": 0.5,
    "clipped": 0.0,
    "sharpness": 0.1,
    "crop_jitter": 0.01,
    "sound_share": 0.5,
    "speech_likeness": 0.5,
    "lip_sound_correlation": 0.2,
}
# What closes a gate that is open by default.
STRICT = FaceGates(min_sharpness=0.05, min_sound_share=0.3, min_speech_likeness=0.3, min_lip_sound_correlation=0.1)


@pytest.mark.parametrize(
    ("score", "value", "reason"),
    [
        ("face_px", 95.9, "face_too_small"),
        ("other_faces", 0.11, "several_faces"),
        ("roll_extreme_deg", 45.1, "head_tilted"),
        ("yaw_extreme_deg", 50.1, "head_turned"),
        ("pitch_extreme_deg", 40.1, "head_turned"),
        ("crop_scale", 1.14, "face_fills_frame"),
        ("upscale", 3.01, "upscaled"),
        ("brightness", 15.9, "too_dark"),
        ("hidden", 0.21, "face_hidden"),
        ("border_contact", 0.51, "face_cut_off"),
        ("headroom", -0.11, "face_cut_off"),
        ("iris_contrast", -0.01, "blank_eyes"),
        ("clipped", 0.51, "badly_lit"),
        ("sharpness", 0.04, "blurred"),
        ("crop_jitter", 0.11, "shaky"),
        ("sound_share", 0.29, "no_sound"),
        ("speech_likeness", 0.29, "no_speech"),
        ("lip_sound_correlation", 0.09, "lips_apart"),
    ],
)
def test_each_gate_closes_alone(score: str, value: float, reason: str) -> None:
    assert decide(GOOD, STRICT).accepted
    assert decide({**GOOD, score: value}, STRICT).reason == reason


def test_every_threshold_has_its_row_in_the_table_and_every_row_its_score(made: tuple[Clip, Path]) -> None:
    assert sorted(g.field for g in GATES) == sorted(f.name for f in dataclasses.fields(FaceGates))
    assert {g.score for g in GATES} <= set(made[0].scores)
    assert set(made[0].still_scores) <= set(made[0].scores)
    assert {g.score for g in GATES} - set(made[0].still_scores) == {"sound_share", "speech_likeness", "lip_sound_correlation"}


def test_a_silent_track_is_not_sound_unless_nobody_asks(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=32), sound=np.zeros(20_000, np.int16))
    (clip,) = faces(path, tmp_path)
    assert clip.has_audio and clip.scores["sound_share"] == 0.0
    assert decide(clip.scores, FaceGates()).accepted and decide(clip.scores, FaceGates(min_sound_share=0.1)).reason == "no_sound"


def test_a_gate_that_is_just_met_is_open() -> None:
    edge = {**GOOD, "face_px": 96.0, "roll_extreme_deg": 45.0, "brightness": 16.0, "upscale": 3.0, "crop_scale": 1.15, "other_faces": 0.1}
    assert decide(edge, FaceGates()).accepted


def test_a_dark_clip_is_measured_dark(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", ((p * 0.12).astype(np.uint8) for p in moving_face("hopper", 32)))
    try:
        (clip,) = faces(path, tmp_path)
    except Rejection as e:
        assert e.reason in ("no_face", "lost_face")
    else:
        assert decide(clip.scores, FaceGates()).reason == "too_dark"


def test_two_faces_side_by_side_are_several(tmp_path: Path) -> None:
    a, b = (moving_face(w, 32, wh=(160, 320), face_px=120) for w in ("astronaut", "hopper"))
    path = write_clip(tmp_path / "a.mp4", (np.concatenate(p, 1) for p in zip(a, b, strict=True)))
    assert {decide(c.scores, FaceGates()).reason for c in faces(path, tmp_path)} == {"several_faces"}


def beside(large: str, small: str, small_px: float) -> Iterator[np.ndarray]:
    """A face of 200 px in the middle, a smaller one as near to it as heads can be."""
    mask = np.zeros((160, 160, 1), np.uint8)
    cv2.ellipse(mask, (80, 80), (int(0.42 * small_px), int(0.6 * small_px)), 0, 0, 360, 1, -1)
    for picture, other in zip(moving_face(large, 32, (500, 400), 200), moving_face(small, 32, (160, 160), small_px), strict=True):  # type: ignore[arg-type]
        picture = picture.copy()
        picture[120:280, 295:455] = np.where(mask > 0, other, picture[120:280, 295:455])
        yield picture


@pytest.mark.parametrize("small_px", [95.0, 110.0])
@pytest.mark.parametrize(("large", "small"), [("astronaut", "hopper"), ("hopper", "astronaut")])
def test_a_smaller_face_beside_it_does_not_take_the_largers_place(tmp_path: Path, large: str, small: str, small_px: float) -> None:
    seen = Survey().look(next(beside(large, small, small_px)))
    assert [f.centre[0] > 320 for f in seen] == [False, True]
    clips = faces(write_clip(tmp_path / "a.mp4", beside(large, small, small_px)), tmp_path)
    assert [clip.frames for clip in clips] == [32]
    assert clips[0].scores["face_px"] > 150


class _Counted:
    """Counts who is asked."""

    def __init__(self, inner: object) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, picture: np.ndarray) -> object:
        self.calls += 1
        return self.inner(picture)  # type: ignore[operator]


def test_a_face_that_looks_the_same_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hands are looked for again as soon as something comes before the mouth, by however small steps; its box goes with it meanwhile."""
    survey = Survey()
    mesh, hands = _Counted(survey._mesh), _Counted(survey._hands)
    monkeypatch.setattr(survey, "_mesh", mesh)
    monkeypatch.setattr(survey, "_hands", hands)
    still = next(moving_face("astronaut", 1, (400, 400), 160))
    pictures = [np.roll(still, (shift, 2 * shift), (0, 1)) for shift in range(6)]
    looked = [faces for _, faces in survey(enumerate(pictures))]
    assert hands.calls == 2 and 1 <= mesh.calls <= 3, "a hand that one look misses is seen by the next"
    first, last = looked[0][0], looked[-1][0]
    np.testing.assert_allclose(last.box - first.box, [10, 5, 10, 5], atol=0.03 * first.size)

    size = looked[0][0].size
    x, y = looked[0][0].centre
    y += 0.27 * size  # the mouth
    covered_more: list[np.ndarray] = []
    for step in range(16):
        picture = still.copy()
        half = 0.2 * size
        picture[int(y - half / 2) : int(y + half / 2), int(x - half) : int(x - half + step * half / 7.5)] = (170, 110, 80)
        covered_more.append(picture)
    hands.calls = 0
    list(survey(enumerate(covered_more)))
    assert hands.calls >= 3, "what comes by small steps is seen in the end, beyond the two looks at first"


def test_who_comes_back_to_an_earlier_look_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one who talks does: each of two looks is confirmed once, and then known."""
    survey = Survey()
    hands = _Counted(survey._hands)
    monkeypatch.setattr(survey, "_hands", hands)
    one = next(moving_face("astronaut", 1, (400, 400), 160))
    face = survey.look(one)[0]
    (x, y), size = face.centre, face.size
    other = one.copy()
    other[int(y + 0.2 * size) : int(y + 0.35 * size), int(x - 0.2 * size) : int(x + 0.2 * size)] = (170, 110, 80)  # the mouth
    hands.calls = 0
    list(survey(enumerate([one, other] * 4)))
    assert hands.calls == 4


def test_a_hand_that_is_missed_once_is_found_while_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it was blurred by its motion before it came to rest."""
    survey = Survey()
    said = iter([0.0, 0.0, 0.0, 0.8, 0.8])
    monkeypatch.setattr(survey, "_hidden", lambda picture, mesh: next(said))
    clear = next(moving_face("astronaut", 1, (400, 400), 160))
    box = survey.look(clear)[0].box.astype(int)
    behind = clear.copy()
    behind[box[1] : (box[1] + box[3]) // 2, box[0] : (box[0] + box[2]) // 2] = (170, 110, 80)  # an eye
    hidden = [faces[0].hidden for _, faces in survey(enumerate([clear, behind, behind, behind]))]
    assert hidden == [0.0, 0.0, 0.8, 0.8]


@pytest.mark.parametrize("off", [(600, 100), (100, 600), (-600, -600), (511, 511)])
def test_a_mesh_beyond_the_picture_has_a_patch_all_the_same(off: tuple[int, int]) -> None:
    points = (300 * canonical() + [*off, 0]).astype(np.float32)
    assert np.isfinite(face_patch(np.zeros((512, 512, 3), np.uint8), points)).all()


def test_a_clip_too_short_for_the_usual_looks_is_looked_at(tmp_path: Path) -> None:
    assert [c.frames for c in faces(write_clip(tmp_path / "a.mp4", moving_face(frames=8)), tmp_path, survey_every=30, min_clip_s=0.2)] == [
        8
    ]


def test_overlap_of_boxes() -> None:
    a = np.array([0.0, 0, 2, 2])
    assert overlap(a, a) == 1.0
    assert overlap(a, np.array([1.0, 0, 3, 2])) == pytest.approx(1 / 3)
    assert overlap(a, np.array([5.0, 5, 6, 6])) == overlap(a * 0, a * 0) == 0.0


def test_the_still_is_the_frame_with_eyes_open_and_in_the_light() -> None:
    shape = np.repeat(100 * canonical()[None], 3, 0)
    shape[0][[387, 386, 385, 160, 159, 158]] = shape[0][[373, 374, 380, 144, 145, 153]]  # shut
    luma = np.array([100.0, 100.0, 20.0])
    assert still_frame(shape, luma) == 1


def test_a_track_comes_back_as_it_went(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(4, 478, 3)).astype(np.float32)
    (tmp_path / "t.npz").write_bytes(encode_track(points, np.arange(4, dtype=np.int32)))
    back, frames = read_track(tmp_path / "t.npz")
    np.testing.assert_array_equal(back, points)
    assert frames.tolist() == [0, 1, 2, 3]


# --- portraits


def portrait(picture: np.ndarray, root: Path) -> PortraitUnit:
    Image.fromarray(picture).save(root / "a.png")
    (unit,) = Portraits(FacesConfig(), SIZE)(source(root / "a.png"), Outputs(DiskStore(root), "portraits/a"))[1]
    return unit


def test_a_portrait_is_cut_by_the_rule_of_the_clips(tmp_path: Path) -> None:
    unit = portrait(photograph("hopper"), tmp_path)
    image = decode_image((tmp_path / unit.folder / unit.image).read_bytes())
    points, _ = read_track(tmp_path / unit.folder / unit.track)
    assert image.shape == (SIZE, SIZE, 3) and points.shape == (1, 478, 3)
    assert 0.3 < np.ptp(points[0, :, 1]) / SIZE < 0.6
    assert decide(unit.scores, FaceGates()).accepted


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (next(noise(1, (400, 400))), "no_face"),
        (np.concatenate([photograph("astronaut")[:400, 80:380]] * 2, 1), "several_faces"),
    ],
)
def test_a_picture_without_one_face_says_why(tmp_path: Path, picture: np.ndarray, reason: str) -> None:
    with pytest.raises(Rejection) as e:
        portrait(picture, tmp_path)
    assert e.value.reason == reason


def test_a_clips_still_serves_as_a_portrait(made: tuple[Clip, Path]) -> None:
    clip, root = made
    unit = portrait_of_clip(clip)
    points, _ = read_track(root / unit.folder / unit.track)
    assert 0 <= unit.frame < len(points) and unit.clip == clip.id
    assert {n: file_digest(root / unit.folder / n) for n in unit.digests} == unit.digests
