"""Expression scores: a smile, a blink and a dropped jaw are told by their names, and a picture without a face has none."""

from __future__ import annotations

import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from faceclips import noise, photograph

from schemas.ids import sha256_of
from schemas.sample import EXPRESSIONS, decode_controls, encode_controls
from stages.expression import Expressions
from stages.head import eye_opening, mouth_opening
from stages.media import decode
from stages.mesh import FaceMesh

TASK = Path("models") / "mediapipe" / "face_landmarker_v2_with_blendshapes.task"


@pytest.fixture(scope="module")
def expressions(shared: Path) -> Expressions:
    return Expressions(shared / TASK)


def of(scores: np.ndarray, name: str) -> np.ndarray:
    return scores[..., EXPRESSIONS.index(name)]


def test_the_names_are_52_different_ones() -> None:
    assert len(EXPRESSIONS) == len(set(EXPRESSIONS)) == 52
    assert EXPRESSIONS[0] == "_neutral" and EXPRESSIONS[-1] == "noseSneerRight"


def test_an_astronaut_smiles_and_noise_has_no_face(expressions: Expressions, capfd: pytest.CaptureFixture[str]) -> None:
    scores = expressions(photograph("astronaut")[:300, 80:380])
    assert scores.shape == (52,) and scores.dtype == np.float32 and 0 <= scores.min() <= scores.max() <= 1
    assert of(scores, "mouthSmileLeft") > 0.7 and of(scores, "mouthSmileRight") > 0.7 and of(scores, "jawOpen") < 0.3
    assert np.isnan(expressions(next(noise(1)))).all()
    np.testing.assert_array_equal(expressions(photograph("astronaut")[:300, 80:380]), scores)  # whatever came between
    said = capfd.readouterr().err
    assert "0000 " not in said and "INFO" not in said, said  # MediaPipe's lines begin with I0000, W0000 or E0000


def test_jaw_and_lids_move_with_the_mesh(shared: Path, expressions: Expressions) -> None:
    frames = [f.rgb for f in islice(decode(shared / "realdata" / "clips" / "lp_d0.mp4"), 0, 78, 2)]
    points, _ = FaceMesh().track(frames)
    scores = expressions.track(frames)
    assert scores.shape == (len(frames), 52)
    assert np.corrcoef(of(scores, "jawOpen"), mouth_opening(points))[0, 1] > 0.6
    blink = (of(scores, "eyeBlinkLeft") + of(scores, "eyeBlinkRight")) / 2
    assert np.corrcoef(blink, eye_opening(points).mean(1))[0, 1] < -0.6
    rows: list[np.ndarray] = []
    assert all(a is b for a, b in zip(expressions.watch(frames[:3], rows), frames, strict=False))
    np.testing.assert_array_equal(rows, scores[:3])


def test_a_file_that_is_not_the_network_is_an_error_that_names_it(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.task: not there"):
        Expressions(tmp_path / "none.task")
    (tmp_path / "other.task").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"other\.task: holds no expression network"):
        Expressions(tmp_path / "other.task")
    with zipfile.ZipFile(tmp_path / "mesh.task", "w") as archive:
        archive.writestr("face_landmarks_detector.tflite", b"")
    with pytest.raises(ValueError, match=r"mesh\.task: holds no expression network"):
        Expressions(tmp_path / "mesh.task")
    with zipfile.ZipFile(tmp_path / "broken.task", "w") as archive:
        archive.writestr("face_blendshapes.tflite", b"")
    with pytest.raises(ValueError, match=r"broken\.task: MediaPipe cannot open it"):
        Expressions(tmp_path / "broken.task")(np.zeros((64, 64, 3), np.uint8))
    Expressions(shared / TASK, sha256_of(shared / TASK))
    with pytest.raises(ValueError, match="is not the file that the run began with"):
        Expressions(shared / TASK, "0" * 64)


def test_controls_hold_expressions_where_there_are_any() -> None:
    points, pose = np.zeros((3, 478, 3), np.float32), np.eye(4)[None].repeat(3, 0)
    assert not {k for k in decode_controls(encode_controls(points, points, pose, pose)) if "expressions" in k}
    scores = np.random.default_rng(0).random((3, 52)).astype(np.float32)
    lost = np.where(np.arange(3)[:, None] == 1, np.nan, scores).astype(np.float32)
    back = decode_controls(encode_controls(points, points, pose, pose, target_expressions=scores, driving_expressions=lost))
    np.testing.assert_allclose(back["target_expressions"], scores, atol=0.5 / 1024)
    np.testing.assert_allclose(back["driving_expressions"], lost, atol=0.5 / 1024)
    assert back["driving_expressions"].dtype == np.float32
