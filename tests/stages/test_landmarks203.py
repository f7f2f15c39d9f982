"""The 203 landmarks through a real ONNX graph whose answer is known: it finds a red and a green spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages import head
from stages.landmarks203 import LANDMARKS_FILE, Landmarks203
from stages.liveportrait_crop import POINTS_203, crop_by_landmarks, landmark_parts

SIDE = 224
WIDTHS = (214, 262, 406)  # of the published file's outputs
SHARES = np.linspace(-0.5, 1.5, POINTS_203)  # where each point lies between the red spot and the green one


def spot_finder(path: Path, widths: tuple[int, ...] = WIDTHS, side: int = SIDE, name: str = "input") -> Path:
    """A graph with the published signature. Of the output of width 406, point i lies SHARES[i] of the way from red to green.

    Point 0 is the largest values of red and blue instead: how bright pixels reach the network. Other outputs are noise.
    """
    x, y = np.meshgrid(np.arange(side) / side, np.arange(side) / side)
    grid = np.stack([x.ravel(), y.ravel(), np.ones(side * side)], 1).astype(np.float32)
    mix = np.zeros((6, 2 * POINTS_203), np.float32)  # of red x, red y, green x, green y, brightest red, brightest blue
    mix[0, 0::2] = mix[1, 1::2] = 1 - SHARES
    mix[2, 0::2] = mix[3, 1::2] = SHARES
    mix[:, :2] = 0
    mix[4, 0] = mix[5, 1] = 1
    constants = {
        "grid": grid,
        "mix": mix,
        "flat": np.array([3, side * side]),
        "two": np.array([2]),
        "three": np.array([3]),
        "four": np.array([1, 4]),
        "one_two": np.array([1, 2]),
        "zero": np.array([0]),
        "last": np.array([1]),
        "brightest": np.array([0, 2]),
        "tiny": np.array(1e-6, np.float32),
    }
    nodes = [
        helper.make_node("Reshape", [name, "flat"], ["planes"]),
        helper.make_node("MatMul", ["planes", "grid"], ["moments"]),  # (3, 3): light times x, y, 1 of each colour
        helper.make_node("Slice", ["moments", "zero", "two", "last"], ["sums"]),
        helper.make_node("Slice", ["moments", "two", "three", "last"], ["light"]),
        helper.make_node("Add", ["light", "tiny"], ["some"]),
        helper.make_node("Div", ["sums", "some"], ["middles"]),
        helper.make_node("Slice", ["middles", "zero", "two", "zero"], ["spots"]),
        helper.make_node("Reshape", ["spots", "four"], ["places"]),
        helper.make_node("ReduceMax", ["planes", "last"], ["peaks"], keepdims=0),
        helper.make_node("Gather", ["peaks", "brightest"], ["two_peaks"]),
        helper.make_node("Reshape", ["two_peaks", "one_two"], ["bright"]),
        helper.make_node("Concat", ["places", "bright"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "mix"], ["answer"]),
    ]
    outputs = []
    for width in widths:
        found = f"out_{width}"
        outputs.append(helper.make_tensor_value_info(found, TensorProto.FLOAT, [1, width]))
        if width == 2 * POINTS_203:
            nodes.append(helper.make_node("Identity", ["answer"], [found]))
        else:
            constants[f"noise_{width}"] = np.random.default_rng(width).normal(size=(6, width)).astype(np.float32)
            nodes.append(helper.make_node("MatMul", ["features", f"noise_{width}"], [found]))
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, side, side])],
        outputs,
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Landmarks203:
    return Landmarks203(spot_finder(tmp_path_factory.mktemp("models") / LANDMARKS_FILE), threads=1)


def mesh_at(at: tuple[float, float], roll: float = 0, size: float = 150) -> np.ndarray:
    """A face mesh (478, 3) in px."""
    rotation = head.rotation_of(np.array([[10.0, 5, roll]]))
    return head.Pose(np.array([float(size)]), rotation, np.array([[*at, 0]], float)).apply(head.canonical())[0]


def spots(red: np.ndarray, green: np.ndarray, wh: tuple[int, int] = (640, 480)) -> np.ndarray:
    """A black picture with a red and a green spot, and no blue brighter than 51."""
    y, x = np.indices(wh[::-1])
    picture = np.zeros((*wh[::-1], 3))
    for channel, at in enumerate((red, green)):
        picture[..., channel] = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 5.0**2))
    picture[..., 2] = picture[..., 0] / 5
    return picture.round().astype(np.uint8)


def between(red: np.ndarray, green: np.ndarray) -> np.ndarray:
    """The answer for points 1 to 202, (202, 2)."""
    return red + SHARES[1:, None] * (green - red)


@pytest.mark.parametrize("roll", [0, 25, -60, 170])
@pytest.mark.parametrize("size", [90, 150, 250])
def test_landmarks_are_found_in_the_picture_s_pixels(network: Landmarks203, roll: float, size: float) -> None:
    """Whatever the crop's turn and scale, spots are found where they were painted."""
    at = np.array([330.25, 231.5])
    red, green = at + size * np.array([-0.2, 0.1]), at + size * np.array([0.25, -0.15])
    found = network(spots(red, green), mesh_at((330, 230), roll, size))
    assert found.shape == (203, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found[1:], between(red, green), atol=0.1)


def test_they_are_found_again_from_themselves(network: Landmarks203) -> None:
    """Initial points may be 203, those of a search before."""
    red, green = np.array([300.0, 220]), np.array([340.0, 250])
    previous = np.random.default_rng(0).uniform([250, 170], [390, 310], (203, 2))
    np.testing.assert_allclose(network(spots(red, green), previous)[1:], between(red, green), atol=0.1)


def test_the_network_sees_rgb_from_0_to_1(network: Landmarks203) -> None:
    """Point 0 is no place but how bright red and blue are, in crop sides from the crop's corner, carried to the picture as the rest."""
    red, green = np.array([320.0, 240]), np.array([330.0, 250])
    mesh = mesh_at((320, 240), roll=40)
    bright = network(spots(red, green), mesh)[0].astype(float)
    places = np.array([[0.0, 0], [SIDE, 0], [0, SIDE]])  # a crop's corner and two others, in its px
    corner, right, below = crop_by_landmarks(*landmark_parts(mesh), side=SIDE, scale=1.5, vy=-0.1, rotate=True).to_picture_px(places)
    peaks = np.linalg.solve(np.stack([right - corner, below - corner], 1), bright - corner)
    np.testing.assert_allclose(peaks, [1, 0.2], atol=0.02)


def test_a_face_at_the_border_is_found(network: Landmarks203) -> None:
    red, green = np.array([25.0, 30]), np.array([60.0, 45])
    np.testing.assert_allclose(network(spots(red, green), mesh_at((20, 30)))[1:], between(red, green), atol=0.1)


def test_the_output_is_chosen_by_its_shape(tmp_path: Path) -> None:
    red, green = np.array([300.0, 220]), np.array([340.0, 250])
    for widths in ((406, 214, 262), (214, 406), (406,)):
        network = Landmarks203(spot_finder(tmp_path / LANDMARKS_FILE, widths))
        np.testing.assert_allclose(network(spots(red, green), mesh_at((320, 240)))[1:], between(red, green), atol=0.1)


def test_each_frame_starts_from_its_own_mesh(network: Landmarks203) -> None:
    """The face jumps across the picture, as over a cut: what follows landmarks alone would look at black."""
    places = [(120, 130), (125, 130), (500, 350), (505, 345)]
    corners = [(np.add(at, [-20.5, 5]), np.add(at, [25, -10.25])) for at in places]
    frames = [spots(red, green) for red, green in corners]
    points = np.stack([mesh_at(at, roll=10 * k) for k, at in enumerate(places)]).astype(np.float32)
    found = network.track(iter(frames), points)
    assert found.shape == (4, 203, 2) and found.dtype == np.float32
    for row, (red, green) in zip(found, corners, strict=True):
        np.testing.assert_allclose(row[1:], between(red, green), atol=0.1)
    np.testing.assert_array_equal(network.track(frames[2:], points[2:]), found[2:])  # wherever the clip begins


def test_a_clip_without_frames_has_no_landmarks(network: Landmarks203) -> None:
    assert network.track([], np.zeros((0, 478, 3))).shape == (0, 203, 2)


def test_a_clip_with_fewer_meshes_than_frames_is_refused(network: Landmarks203) -> None:
    with pytest.raises(ValueError, match="zip"):
        network.track([spots(np.zeros(2), np.ones(2))], np.zeros((0, 478, 3)))


def test_a_frame_without_a_face_is_refused(network: Landmarks203) -> None:
    with pytest.raises(ValueError, match="finite"):
        network(spots(np.zeros(2), np.ones(2)), np.full((478, 3), np.nan))


@pytest.mark.parametrize("what", ["missing", "damaged", "cut short", "other outputs", "other size", "other input", "a folder"])
def test_a_file_that_is_none_is_named_with_what_to_do(tmp_path: Path, what: str) -> None:
    path = tmp_path / LANDMARKS_FILE
    if what == "damaged":
        path.write_bytes(b"nonsense")
    elif what == "cut short":
        spot_finder(path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif what == "other outputs":
        spot_finder(path, (214, 262))
    elif what == "other size":
        spot_finder(path, side=192)
    elif what == "other input":
        spot_finder(path, name="data")
    elif what == "a folder":
        path.mkdir()
    with pytest.raises(ValueError) as caught:
        Landmarks203(path)
    said = str(caught.value)
    assert str(path) in said and "LivePortrait release" in said and "\n" not in said
