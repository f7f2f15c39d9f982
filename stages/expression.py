"""Expression: how much a face smiles, frowns, blinks and so on, as the 52 scores of MediaPipe's face landmarker."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from schemas.ids import sha256_of
from schemas.sample import EXPRESSIONS
from stages.quiet import silent_stderr

_NETWORK = "face_blendshapes.tflite"
_WANTED = "wanted MediaPipe's face_landmarker_v2_with_blendshapes.task, that is face_landmarker.task with expression scores"


class Expressions:
    """Crops to expression scores. Each picture is looked at by itself, so that a frame's scores do not depend on those before it.

    The user brings the network. MediaPipe prints while it starts, until its first result, so it is made when the first picture is there.

    Args:
        task_path: face_landmarker_v2_with_blendshapes.task (Apache-2.0, 3.8 MB).
        sha256: if given, another file is an error.

    Raises:
        ValueError: a file that is missing, is another one, or holds no expression network.
    """

    def __init__(self, task_path: Path, sha256: str = "") -> None:
        if not task_path.is_file():
            raise ValueError(f"{task_path}: not there; {_WANTED}")
        if sha256 and sha256_of(task_path) != sha256:
            raise ValueError(f"{task_path}: is not the file that the run began with (sha256 {sha256}); put that back, or run again")
        if not zipfile.is_zipfile(task_path) or _NETWORK not in zipfile.ZipFile(task_path).namelist():
            raise ValueError(f"{task_path}: holds no expression network; {_WANTED}")
        self._path = task_path
        self._landmarker: Any = None

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Scores float32 (52,), 0..1, in the order of EXPRESSIONS, of the one face in a crop, uint8 RGB (H, W, 3); NaN without a face."""
        mediapipe = import_module("mediapipe")
        picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(rgb))
        if self._landmarker is not None:
            found = self._landmarker.detect(picture).face_blendshapes
        else:
            with silent_stderr():
                self._landmarker = self._open()
                found = self._landmarker.detect(picture).face_blendshapes
        if not found:
            return np.full(len(EXPRESSIONS), np.nan, np.float32)
        scores = {c.category_name: c.score for c in found[0]}
        return np.array([scores[name] for name in EXPRESSIONS], np.float32)

    def track(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Scores float32 (T, 52) of a whole clip."""
        return stacked([self(frame) for frame in frames])

    def watch(self, frames: Iterable[np.ndarray], rows: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames as they are; their scores go to `rows` while they pass by."""
        for frame in frames:
            rows.append(self(frame))
            yield frame

    def _open(self) -> Any:
        vision = import_module("mediapipe.tasks.python.vision")
        base = import_module("mediapipe.tasks.python.core.base_options")
        settings = vision.FaceLandmarkerOptions(
            base_options=base.BaseOptions(model_asset_buffer=self._path.read_bytes()),
            running_mode=vision.RunningMode.IMAGE,
            num_faces=1,
            output_face_blendshapes=True,
        )
        try:
            return vision.FaceLandmarker.create_from_options(settings)
        except (RuntimeError, ValueError) as e:
            raise ValueError(f"{self._path}: MediaPipe cannot open it; {_WANTED}: {e}") from e


def stacked(rows: list[np.ndarray]) -> np.ndarray:
    """Rows (52,) as float32 (T, 52)."""
    return np.stack(rows) if rows else np.zeros((0, len(EXPRESSIONS)), np.float32)
