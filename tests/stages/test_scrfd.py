"""SCRFD: a made-up network whose face is wherever a picture is red; where it says a face is, the detector says so, in the picture's px."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stages.scrfd import SIDE, ScrfdDetector, _without_overlaps

BOX = (2.0, 3.0, 4.0, 5.0)  # strides to the left, up, to the right, down of the centre
POINTS = tuple(float(k) for k in range(10))


def red_network(path: Path, *, batched: bool = False, leave_out: str = "") -> Path:
    """At stride 8 a score is the mean red of its 8 x 8 px, scaled as the network's input is; at 16 and 32 there is nothing.

    The second anchor of each place is a little less sure of the same box.
    """
    lead = [1] if batched else []
    nodes = [
        helper.make_node("AveragePool", ["x"], ["mean"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Gather", ["mean", "zero"], ["red"], axis=1),
        helper.make_node("Reshape", ["red", "column"], ["one"]),
        helper.make_node("Sub", ["one", "less"], ["two"]),
        helper.make_node("Concat", ["one", "two"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "flat"], ["score_8"]),
    ]
    constants = {
        "zero": np.array(0),
        "column": np.array([-1, 1]),
        "less": np.array(0.1, np.float32),
        "flat": np.array([*lead, -1, 1]),
    }
    outputs = ["score_8"]
    for stride in (8, 16, 32):
        n = 2 * (SIDE // stride) ** 2
        rows = {"score": np.zeros((n, 1)), "bbox": np.tile(BOX, (n, 1)), "kps": np.tile(POINTS, (n, 1))}
        for kind, values in rows.items():
            name = f"{kind}_{stride}"
            if name != "score_8":
                constants[f"{name}_c"] = values.reshape(*lead, *values.shape).astype(np.float32)
                nodes.append(helper.make_node("Identity", [f"{name}_c"], [name]))
                outputs.append(name)
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name != leave_out],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def picture(*patches: tuple[int, int], wh: tuple[int, int] = (SIDE, SIDE), px: int = 8, colour: int = 0) -> np.ndarray:
    found = np.zeros((wh[1], wh[0], 3), np.uint8)
    for x, y in patches:
        found[y : y + px, x : x + px, colour] = 255
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "batched"])
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ScrfdDetector:
    """Exporters write outputs with and without a leading dimension."""
    return ScrfdDetector(red_network(tmp_path_factory.mktemp("scrfd") / "red.onnx", batched=request.param))


def expected(x: float, y: float) -> tuple[list[float], np.ndarray]:
    """Box and points of a face at a place of stride 8."""
    return [x - 16, y - 24, x + 32, y + 40], np.array([x, y]) + 8 * np.array(POINTS).reshape(5, 2)


def test_a_face_is_where_the_network_says(detector: ScrfdDetector) -> None:
    boxes, points = detector(picture((80, 160)))
    box, five = expected(80, 160)
    assert boxes.shape == (1, 4) and points.shape == (1, 5, 2) and boxes.dtype == points.dtype == np.float64
    assert np.allclose(boxes[0], box) and np.allclose(points[0], five)


def test_red_is_red(detector: ScrfdDetector) -> None:
    boxes, points = detector(picture((80, 160), colour=2))
    assert boxes.shape == (0, 4) and points.shape == (0, 5, 2)


@pytest.mark.parametrize(("wh", "zoom"), [((1280, 640), 0.5), ((640, 1280), 0.5), ((320, 200), 2.0)])
def test_places_are_told_in_px_of_the_picture(detector: ScrfdDetector, wh: tuple[int, int], zoom: float) -> None:
    boxes, points = detector(picture((160, 80), wh=wh, px=round(8 / zoom)))
    box, five = expected(160 * zoom, 80 * zoom)
    assert np.allclose(boxes, [np.array(box) / zoom]) and np.allclose(points, [five / zoom])


def test_faces_apart_are_two_and_faces_that_overlap_are_one(detector: ScrfdDetector) -> None:
    assert len(detector(picture((80, 160), (400, 160)))[0]) == 2
    assert len(detector(picture((80, 160), (88, 160)))[0]) == 1


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_of_boxes_that_overlap_the_surest_stays(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (n, 2))
    boxes, scores = np.hstack([corner, corner + rng.uniform(1, 40, (n, 2))]), rng.random(n)

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
        both = sides[0] * sides[1]
        return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))

    kept = list(_without_overlaps(boxes, scores, 0.4))
    for k in range(n):
        surer = [j for j in kept if scores[j] > scores[k] and overlap(boxes[j], boxes[k]) > 0.4]
        assert (k in kept) == (not surer)


def test_the_largest_face_comes_first(tmp_path: Path) -> None:
    path = red_network(tmp_path / "red.onnx")
    model = onnx.load(path)
    boxes = next(t for t in model.graph.initializer if t.name == "bbox_8_c")
    values = numpy_helper.to_array(boxes).copy()
    values[2 * (20 * 80 + 50) :] *= 1.5  # those farther down
    boxes.CopyFrom(numpy_helper.from_array(values, "bbox_8_c"))
    onnx.save(model, path)
    found, points = ScrfdDetector(path)(picture((80, 160), (400, 160)))
    assert found[0, 0] == 400 - 24 and found[1, 0] == 80 - 16
    assert points[0, 0, 0] == 400 and points[1, 0, 0] == 80


def test_what_cannot_serve_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.onnx: cannot serve as face detector"):
        ScrfdDetector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.onnx: cannot serve"):
        ScrfdDetector(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=r"few\.onnx: another network: expected outputs"):
        ScrfdDetector(red_network(tmp_path / "few.onnx", leave_out="kps_16"))
