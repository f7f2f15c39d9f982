"""LivePortrait's 203 face landmarks, found by the landmark.onnx of its release from rough points of the same face.

The file is MIT, as the release is; without it the face mesh alone sets the crops. ONNX Runtime on the CPU, one picture at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from stages.liveportrait_crop import POINTS_203, crop_by_landmarks, landmark_parts

LANDMARKS_FILE = "landmark.onnx"
_SIDE = 224
_REMEDY = f"take liveportrait/{LANDMARKS_FILE} (115 MB) from the LivePortrait release again, or remove the file"


class Landmarks203:
    """The landmark network.

    Args:
        path: `input` float32 (1, 3, 224, 224), RGB 0..1; of its outputs the one of shape (1, 406) holds x, y of each point in crop sides.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        ValueError: the file is missing, damaged, or another network.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            # by shape: names and order are the exporter's, and shapes are known for sure only after a run
            found = self._session.run(None, {"input": np.zeros((1, 3, _SIDE, _SIDE), np.float32)})
        except Exception as e:  # ONNX Runtime raises classes of its own that have nothing else in common
            raise ValueError(f"{path}: ONNX Runtime cannot use it ({(str(e).splitlines() or [''])[0][:200]}); {_REMEDY}") from e
        shapes = [np.shape(o) for o in found]
        if (1, 2 * POINTS_203) not in shapes:
            raise ValueError(f"{path}: another network: no output of shape (1, {2 * POINTS_203}) among {shapes}; {_REMEDY}")
        self._output = self._session.get_outputs()[shapes.index((1, 2 * POINTS_203))].name

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Landmarks float32 (203, 2) in px of uint8 RGB (H, W, 3), near `points`: 478 of the mesh or 203, (N, 2 or 3)."""
        crop = crop_by_landmarks(*landmark_parts(points), side=_SIDE, scale=1.5, vy=-0.1, rotate=True)
        view = crop.cut(image, _SIDE, shrink="area").astype(np.float32) / 255
        (found,) = self._session.run([self._output], {"input": np.ascontiguousarray(view.transpose(2, 0, 1)[None])})
        return crop.to_picture_px(found.reshape(POINTS_203, 2).astype(np.float64) * _SIDE).astype(np.float32)

    def track(self, frames: Iterable[np.ndarray], points: np.ndarray) -> np.ndarray:
        """Landmarks float32 (T, 203, 2) of a clip with a face mesh (T, 478, 3) in every frame.

        Each frame starts from its own mesh. The original starts from the landmarks of the frame before and never looks again where the
        face is: after a cut or a hand before the face it drifts away; and what it finds depends on where the clip begins.
        """
        found = [self(frame, mesh) for frame, mesh in zip(frames, points, strict=True)]
        return np.stack(found) if found else np.zeros((0, POINTS_203, 2), np.float32)
