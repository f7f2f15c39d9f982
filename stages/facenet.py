"""Who is in a picture: an aligned face to the unit vector that an identity network makes of it. ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from stages.facealign import SIDE

_SCALES = {  # of pixels 0..255, RGB: what is taken off, what it is then divided by
    "arcface": (np.full(3, 127.5), np.full(3, 127.5)),
    "imagenet": (255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])),
}

Normalise = Literal["arcface", "imagenet"]


class FaceNet:
    """An identity network: one input float32 (1 or N, 3, 112, 112), RGB; one output (1 or N, D).

    Args:
        path: an ONNX file, ArcFace's w600k_r50.onnx for one.
        normalise: how the network was trained to see pixels: -1..1, or by ImageNet's mean and deviation.

    Raises:
        ValueError: the file is missing, damaged, or another network.
    """

    def __init__(self, path: Path, normalise: Normalise = "arcface") -> None:
        self._mean, self._deviation = (v.astype(np.float32)[:, None, None] for v in _SCALES[normalise])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # work is spread over units, and sums come out the same
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            inputs = self._session.get_inputs()
            self._input = inputs[0].name
            # by a run: exporters leave shapes open
            found = self._session.run(None, {self._input: np.zeros((1, 3, SIDE, SIDE), np.float32)})
        except Exception as e:  # ONNX Runtime raises classes of its own that have nothing else in common
            why = (str(e).splitlines() or [""])[0][:200]
            raise ValueError(
                f"{path}: cannot serve as identity network ({why}); expected an ONNX file with one float input 1x3x{SIDE}x{SIDE} "
                f"and one output 1xD, as w600k_r50.onnx of an InsightFace pack"
            ) from e
        shapes = [np.shape(o) for o in found]
        if len(inputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != 1 or shapes[0][1] < 2:
            raise ValueError(
                f"{path}: another network: expected one input and one output 1xD, found {len(inputs)} inputs, outputs {shapes}"
            )
        self.size = int(shapes[0][1])

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """Embedding float32 (D,) of unit length of an aligned face, uint8 RGB (112, 112, 3). NaN where the network gives NaN or nothing."""
        pixels = (face.transpose(2, 0, 1).astype(np.float32) - self._mean) / self._deviation
        (found,) = self._session.run(None, {self._input: np.ascontiguousarray(pixels[None])})
        return normalised(np.asarray(found[0], np.float32))


def normalised(vector: np.ndarray) -> np.ndarray:
    """A vector at length 1, float32; NaN where it has no direction."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length if length > 0 else np.full(vector.shape, np.nan)).astype(np.float32)
