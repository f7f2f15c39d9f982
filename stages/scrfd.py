"""SCRFD: InsightFace's face detector (det_10g.onnx of a pack), as boxes and five points, on ONNX Runtime.

The user brings the file, which is licensed for non-commercial research only. InsightFace itself, which downloads by itself what it does not
find, is not needed: answers are read as its python-package/insightface/model_zoo/retinaface.py (MIT) does, thresholds are its own.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

PACK_FILE = "det_10g.onnx"
SIDE = 640
_STRIDES, _ANCHORS = (8, 16, 32), 2  # px between the places that are looked at; answers at each
_KINDS = {"scores": 1, "boxes": 4, "points": 10}  # numbers of an answer


class ScrfdDetector:
    """All faces in a picture.

    Args:
        path: one input float32 (1, 3, 640, 640); for each of the strides 8, 16 and 32 an output of scores, of boxes and of points. They
            are told apart by their shapes: names are the exporter's.
        min_confidence: of a face, 0..1.
        max_overlap: intersection over union from which on two boxes are one face.

    Raises:
        ValueError: the file is missing, damaged, or another network.
    """

    def __init__(self, path: Path, min_confidence: float = 0.5, max_overlap: float = 0.4) -> None:
        self._min_confidence, self._max_overlap = min_confidence, max_overlap
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # work is spread over units
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
            found = self._session.run(None, {self._input: np.zeros((1, 3, SIDE, SIDE), np.float32)})
        except Exception as e:  # ONNX Runtime raises classes of its own that have nothing else in common
            why = (str(e).splitlines() or [""])[0][:200]
            raise ValueError(f"{path}: cannot serve as face detector ({why}); take det_10g.onnx of an InsightFace pack again") from e
        places = {(_ANCHORS * (SIDE // s) ** 2, n): (kind, s) for s in _STRIDES for kind, n in _KINDS.items()}
        shapes = [np.shape(o)[-2:] for o in found]
        if sorted(shapes) != sorted(places):
            expected = ", ".join(f"{a}x{b}" for a, b in sorted(places))
            raise ValueError(
                f"{path}: another network: expected outputs {expected}, found {shapes}; take det_10g.onnx of an InsightFace pack"
            )
        self._outputs = {places[shape]: k for k, shape in enumerate(shapes)}

    def __call__(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float64 (N, 4): x0, y0, x1, y1, and points float64 (N, 5, 2): eyes, nose tip, mouth corners, from the picture's left to its
        right, in px of the uint8 RGB picture (H, W, 3); largest first. N may be 0.
        """
        view, zoom = _letterbox(rgb)
        found = self._session.run(None, {self._input: view})
        answers = {key: np.asarray(found[k], np.float64).reshape(-1, _KINDS[key[0]]) for key, k in self._outputs.items()}
        scores = np.concatenate([answers["scores", s][:, 0] for s in _STRIDES])
        boxes = np.concatenate([_centres(s, 2) + answers["boxes", s] * s * [-1, -1, 1, 1] for s in _STRIDES])
        points = np.concatenate([_centres(s, 5) + answers["points", s] * s for s in _STRIDES])
        sure = np.flatnonzero(scores >= self._min_confidence)
        kept = sure[_without_overlaps(boxes[sure], scores[sure], self._max_overlap)]
        area = np.prod(boxes[kept, 2:] - boxes[kept, :2], axis=1)
        kept = kept[np.argsort(-area, kind="stable")]
        return boxes[kept] / zoom, points[kept].reshape(-1, 5, 2) / zoom[:2]


def _letterbox(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network's view float32 (1, 3, 640, 640) of a picture in its upper left corner, the rest black; and its zoom, for x, y, x, y."""
    height, width = rgb.shape[:2]
    scale = SIDE / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    view = np.zeros((SIDE, SIDE, 3), np.uint8)
    view[:h, :w] = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return ((view.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None], np.array([w / width, h / height] * 2)


def _centres(stride: int, repeat: int) -> np.ndarray:
    """x, y of each anchor of a stride, row by row, `repeat` times side by side: float64 (anchors, 2 repeat)."""
    x, y = np.meshgrid(np.arange(0, SIDE, stride), np.arange(0, SIDE, stride))
    return np.tile(np.repeat(np.stack([x, y], -1).reshape(-1, 2), _ANCHORS, axis=0).astype(np.float64), repeat)


def _without_overlaps(boxes: np.ndarray, scores: np.ndarray, max_overlap: float) -> np.ndarray:
    """Of boxes (N, 4) that are one face the surest: rows, surest first."""
    left, kept = np.argsort(-scores, kind="stable"), []
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        shared = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2])
        both = np.prod(np.maximum(shared, 0), axis=1)
        left = left[both <= max_overlap * (area[best] + area[left] - both)]
    return np.array(kept, int)
