"""The mesh's points are MediaPipe's own, whatever short way they took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from faceclips import moving_face, noise
from mediapipe.python.solutions.face_detection import FaceDetection
from mediapipe.python.solutions.face_mesh import FaceMesh as TheirMesh

from stages.mesh import FaceDetector, FaceMesh

REPO = Path(__file__).parents[2]


def test_points_and_boxes_are_those_of_mediapipes_own_interface() -> None:
    pictures = [*moving_face("hopper", 4), next(noise(1)), *moving_face("astronaut", 2)]
    mesh, theirs = FaceMesh(), TheirMesh(static_image_mode=False, max_num_faces=1, refine_landmarks=True)
    detector, boxes = FaceDetector(), FaceDetection(model_selection=1, min_detection_confidence=0.5)
    for picture in pictures:
        height, width = picture.shape[:2]
        points, found = mesh(picture), theirs.process(picture).multi_face_landmarks
        assert (points is None) == (not found)
        if found:
            want = np.array([(p.x * width, p.y * height, p.z * width) for p in found[0].landmark])
            np.testing.assert_allclose(points, want, rtol=1e-6, atol=1e-4)
        detected = boxes.process(picture).detections or []
        assert len(detector(picture)) == len(detected)
        if detected:
            box = detected[0].location_data.relative_bounding_box
            np.testing.assert_allclose(detector(picture)[0, :2], [box.xmin * width, box.ymin * height], atol=1e-3)


def test_what_is_let_go_takes_its_threads_and_memory_along() -> None:
    """Stages of a run without Ray live in one process with all others of the day. In a process of its own: others' threads come and go."""
    code = """
import gc
from pathlib import Path
from faceclips import photograph
from stages.mesh import FaceMesh

def threads_with(meshes):
    for mesh in meshes:
        mesh(photograph("astronaut"))
    return len(list(Path("/proc/self/task").iterdir()))

kept = FaceMesh(static=True)
before = threads_with([kept])
more = threads_with([FaceMesh(static=True), kept])
gc.collect()
print(before, more, threads_with([kept]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    before, more, after = map(int, done.stdout.split())
    assert before == after < more
