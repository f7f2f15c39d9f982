"""MediaPipe behind one module: boxes of faces and points of hands in a picture, and the 478-point mesh of one face through a video."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np

from stages.quiet import silent_stderr

warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype", category=UserWarning)  # MediaPipe's, at each start

_LANDMARK = np.dtype({"names": ["x", "y", "z"], "formats": ["<f4"] * 3, "offsets": [3, 8, 13], "itemsize": 17})  # as protobuf writes it
_TICK_US = 33_333  # from picture to picture, for networks that must believe in a video

POINTS = 478  # 468 of the mesh, then 5 of each iris: 468-472 the person's right eye, 473-477 the left
IRIS_RIGHT, IRIS_LEFT = 468, 473  # their centres


class _Network:
    """A MediaPipe solution without the lines that it prints while it starts, in threads of its own, until its first result.

    So it is made, and reset, only when the next picture is there. MediaPipe itself is loaded here: half a second and 100 MB that
    other workers, and every command that only reads, need not spend.
    """

    def __init__(self, module: str, solution: str, output: str, **settings: Any) -> None:
        make = getattr(import_module(f"mediapipe.python.solutions.{module}"), solution)
        self._make = lambda: make(**settings)
        self._output = output
        self._solution: Any = None
        self._fresh = True

    def reset(self) -> None:
        self._fresh = True

    def process(self, rgb: np.ndarray) -> list[Any]:
        """Messages of the output stream for the next picture."""
        picture = np.ascontiguousarray(rgb)
        if not self._fresh:
            return self._run(picture)
        with silent_stderr():
            if self._solution is None:
                self._solution = self._make()
                # its graph holds callbacks that hold the graph: 50 MB and some threads would stay for as long as the process
                weakref.finalize(self, self._solution.close).atexit = False
            else:
                self._solution.reset()
            self._fresh = False
            return self._run(picture)

    def _run(self, picture: np.ndarray) -> list[Any]:
        """What the solution's own `process` does, less the class for named results that it makes anew for each picture: that class, and
        results that nobody asks for, take as long as a twelfth of the mesh."""
        from mediapipe.python import packet_creator, packet_getter
        from mediapipe.python._framework_bindings.image_frame import ImageFormat

        solution = self._solution
        solution._graph_outputs.clear()
        solution._simulated_timestamp += _TICK_US
        packet = packet_creator.create_image_frame(picture, image_format=ImageFormat.SRGB).at(solution._simulated_timestamp)
        solution._graph.add_packet_to_input_stream(stream="image", packet=packet)
        solution._graph.wait_until_idle()
        found = solution._graph_outputs.get(self._output)
        return [] if found is None or found.is_empty() else packet_getter.get_proto_list(found)


class FaceDetector:
    """Boxes of all faces in a picture (MediaPipe full-range model)."""

    def __init__(self, min_confidence: float = 0.5) -> None:
        self._net = _Network("face_detection", "FaceDetection", "detections", model_selection=1, min_detection_confidence=min_confidence)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Boxes float64 (N, 4): x0, y0, x1, y1 in px of the uint8 RGB picture (H, W, 3), largest first. N may be 0."""
        height, width = rgb.shape[:2]
        boxes = [d.location_data.relative_bounding_box for d in self._net.process(rgb)]
        corners = np.array([[b.xmin, b.ymin, b.xmin + b.width, b.ymin + b.height] for b in boxes]).reshape(-1, 4)
        corners *= [width, height, width, height]
        return corners[np.argsort(-(corners[:, 2] - corners[:, 0]), kind="stable")]


class HandDetector:
    """Points of up to two hands in a picture, each picture by itself."""

    def __init__(self, min_confidence: float = 0.7) -> None:
        settings = {"static_image_mode": True, "max_num_hands": 2, "model_complexity": 0}
        self._net = _Network("hands", "Hands", "multi_hand_landmarks", **settings, min_detection_confidence=min_confidence)

    def __call__(self, rgb: np.ndarray) -> list[np.ndarray]:
        """21 points, float64 (21, 2), in px of the uint8 RGB picture (H, W, 3), of each hand."""
        height, width = rgb.shape[:2]
        return [np.array([(p.x, p.y) for p in hand.landmark]) * [width, height] for hand in self._net.process(rgb)]


class FaceMesh:
    """The mesh of the one face in a crop, tracked from frame to frame.

    MediaPipe carries state from frame to frame, so a clip must be processed whole, from its first frame, after `reset()`;
    then the result depends on that clip alone. `static` looks at each picture by itself.
    """

    def __init__(self, *, static: bool = False) -> None:
        settings = {"static_image_mode": static, "max_num_faces": 1, "refine_landmarks": True}
        self._net = _Network("face_mesh", "FaceMesh", "multi_face_landmarks", **settings)

    def reset(self) -> None:
        self._net.reset()

    def __call__(self, rgb: np.ndarray) -> np.ndarray | None:
        """Points float32 (478, 3) in px of the uint8 RGB picture (H, W, 3), or None without a face.

        z is depth in the same unit as x, smaller is nearer, zero at the head's middle: MediaPipe's weak-perspective guess.
        """
        height, width = rgb.shape[:2]
        faces = self._net.process(rgb)
        if not faces:
            return None
        return (_landmarks(faces[0]) * [width, height, width]).astype(np.float32)

    def track(self, frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Points float32 (T, 478, 3) and found bool (T,) of a whole clip; points are NaN where no face was found."""
        self.reset()
        points = [self(frame) for frame in frames]
        found = np.array([p is not None for p in points], bool)
        blank = np.full((POINTS, 3), np.nan, np.float32)
        return np.stack([blank if p is None else p for p in points]) if points else np.zeros((0, POINTS, 3), np.float32), found


def _landmarks(message: Any) -> np.ndarray:
    """x, y, z of a NormalizedLandmarkList, float64 (478, 3). Asked for one by one, the numbers cost a tenth of the network's time."""
    data = message.SerializeToString()
    assert len(data) == POINTS * _LANDMARK.itemsize, f"{len(data)} bytes of landmarks"
    rows = np.frombuffer(data, _LANDMARK)
    return np.stack([rows["x"], rows["y"], rows["z"]], axis=1).astype(np.float64)
