"""Graphs on ONNX Runtime: ours and such as the public ones are, found by name, in batches of any size, or an error that says what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tinyportrait import TINY, lively
from torch import Tensor, nn

from model.liveportrait import LivePortrait
from model.liveportrait_export import export_liveportrait
from schemas.ids import sha256_of
from schemas.keypoints import HeadMotion
from stages.liveportrait_graphs import (
    APPEARANCE,
    CPU,
    MOTION,
    RENDER,
    STITCHING,
    LivePortraitGraphs,
    choose_provider,
    fit,
    readable,
)

SIDE = 64


@pytest.fixture(scope="module")
def networks() -> LivePortrait:
    return lively(3)


@pytest.fixture(scope="module")
def ours(networks: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    export_liveportrait(networks, folder, side=SIDE)
    return folder


class Picture(nn.Module):
    """W and G as the public file has them: one frame, float32 both ways."""

    def __init__(self, net: LivePortrait) -> None:
        super().__init__()
        self.net = net

    def forward(self, feature_3d: Tensor, kp_driving: Tensor, kp_source: Tensor) -> Tensor:
        return self.net.generator(self.net.warping(feature_3d, kp_driving, kp_source).out)


@pytest.fixture(scope="module")
def public(networks: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as FasterLivePortrait publishes them: batch of one, float32 pictures, and a 5-D GridSample below opset 20."""
    folder = tmp_path_factory.mktemp("public")
    baked = copy.deepcopy(networks).bake()
    k = TINY.motion.keypoints
    picture, volume = torch.rand(1, 3, SIDE, SIDE), torch.rand(1, 3, 4, SIDE // 4, SIDE // 4)
    keypoints = torch.rand(1, k, 3)
    angles = ["pitch", "yaw", "roll", "t", "exp", "scale", "kp"]
    export(baked.appearance, {"img": picture}, ["output"], folder / APPEARANCE)
    export(baked.motion, {"img": picture}, angles, folder / MOTION)
    inputs = {"feature_3d": volume, "kp_driving": keypoints, "kp_source": keypoints.clone()}
    export(Picture(baked), inputs, ["out"], folder / RENDER)
    export(baked.stitching, {"input": torch.rand(1, 6 * k)}, ["output"], folder / STITCHING)
    return folder


def export(net: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    program = torch.onnx.export(
        net.eval(), tuple(inputs.values()), input_names=list(inputs), output_names=outputs, opset_version=20, dynamo=True, verbose=False
    )
    assert program is not None
    model = program.model_proto
    sampled = [node for node in model.graph.node if node.op_type == "GridSample"]
    for node in sampled:  # as opset 16 to 19 call it
        next(a for a in node.attribute if a.name == "mode").s = b"bilinear"
    if sampled:
        model.opset_import[0].version = 18
    onnx.save(model, path)


def some_motion(frames: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(frames)
    return rng.normal(0, 0.3, (1, 21, 3)), rng.normal(0, 0.3, (frames, 21, 3))


def pictures(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8))


def volume_of(folder: Path, picture: np.ndarray) -> np.ndarray:
    volume: np.ndarray = LivePortraitGraphs(folder).appearance(picture).numpy()
    return volume


# --- two kinds of files, one answer


def test_ours_and_the_public_kind_give_the_same(ours: Path, public: Path, networks: LivePortrait) -> None:
    (picture,) = pictures(1)
    np.testing.assert_allclose(volume_of(ours, picture), volume_of(public, picture), atol=1e-4)
    a, b = (LivePortraitGraphs(folder) for folder in (ours, public))
    assert a.side == b.side == SIDE
    for name, value in vars(a.motion(pictures(5), 4)).items():
        np.testing.assert_allclose(value, getattr(b.motion(pictures(5), 4), name), atol=1e-4, err_msg=name)
    x_s, x_d = some_motion(5)
    frames = [g.render(g.appearance(picture), x_s, x_d, 8).frames for g in (a, b)]
    assert frames[0].shape == (5, 2 * SIDE, 2 * SIDE, 3) and np.abs(frames[0].astype(int) - frames[1]).max() <= 1
    np.testing.assert_allclose(a.stitch(x_s, x_d), b.stitch(x_s, x_d), atol=1e-5)


def test_the_graphs_are_the_networks(ours: Path, networks: LivePortrait) -> None:
    (picture,) = pictures(1)
    x_s, x_d = some_motion(3)
    graphs = LivePortraitGraphs(ours)
    with torch.no_grad():
        image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        expected = HeadMotion.from_network({k: v.numpy() for k, v in networks.motion(image)._asdict().items()})
        source, driving = (torch.from_numpy(x).float() for x in (x_s, x_d))
        drawn = networks.generator(networks.warping(networks.appearance(image), driving, source).out)
        both = torch.cat([source.expand(3, -1, -1), driving], 1).flatten(1)
        offsets = networks.stitching(both).numpy()
    np.testing.assert_allclose(graphs.motion([picture], 1).points(), expected.points(), atol=1e-4)
    got = graphs.render(graphs.appearance(picture), x_s, x_d, 4)
    assert got.finite.all()
    assert np.abs(got.frames - drawn.permute(0, 2, 3, 1).numpy() * 255).max() <= 1
    np.testing.assert_allclose(graphs.stitch(x_s, x_d), offsets, atol=1e-5)


# --- batches


@pytest.mark.parametrize("kind", ["ours", "public"])
def test_padding_and_order_of_a_batch_do_not_matter(kind: str, request: pytest.FixtureRequest) -> None:
    graphs = LivePortraitGraphs(request.getfixturevalue(kind))
    volume = graphs.appearance(pictures(1)[0])
    x_s, x_d = some_motion(5)
    together = graphs.render(volume, x_s, x_d, 8).frames.astype(int)
    singles = np.concatenate([graphs.render(volume, x_s, x_d[i : i + 1], 1).frames for i in range(5)])
    backwards = graphs.render(volume, x_s, x_d[::-1], 5).frames[::-1]
    assert len(together) == 5
    assert np.abs(together - singles).max() <= 1 and np.abs(together - backwards).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 1  # frames that differ
    some = pictures(7)
    np.testing.assert_allclose(graphs.motion(some, 4).points(), np.concatenate([graphs.motion([p], 4).points() for p in some]), atol=1e-5)


@pytest.mark.parametrize("kind", ["ours", "public"])
def test_nan_is_found_in_its_frame(kind: str, request: pytest.FixtureRequest) -> None:
    graphs = LivePortraitGraphs(request.getfixturevalue(kind))
    x_s, x_d = some_motion(3)
    x_d[1, 4, 0] = np.nan
    finite = graphs.render(graphs.appearance(pictures(1)[0]), x_s, x_d, 4).finite
    assert finite.tolist() == [True, False, True]


def test_numbers_that_are_not_finite_inside_the_networks_are_found(ours: Path) -> None:
    import onnxruntime

    graphs = LivePortraitGraphs(ours)
    volume = graphs.appearance(pictures(1)[0]).numpy().copy()
    volume[0, 0, 0, 0, 0] = np.inf
    x_s, x_d = some_motion(2)
    assert not graphs.render(onnxruntime.OrtValue.ortvalue_from_numpy(volume), x_s, x_d, 2).finite.any()


def test_public_frames_are_rounded_not_cut(public: Path, networks: LivePortrait) -> None:
    graphs = LivePortraitGraphs(public)
    (picture,) = pictures(1)
    x_s, x_d = some_motion(1)
    with torch.no_grad():
        source, driving = (torch.from_numpy(x).float() for x in (x_s, x_d))
        image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        drawn = networks.generator(networks.warping(networks.appearance(image), driving, source).out)
    got = graphs.render(graphs.appearance(picture), x_s, x_d, 1).frames
    assert np.abs(got - drawn.permute(0, 2, 3, 1).numpy() * 255).max() < 0.52


def test_a_file_that_changed_since_the_run_began_is_not_opened(public: Path) -> None:
    (picture,) = pictures(1)
    good = {APPEARANCE: sha256_of(public / APPEARANCE)}
    LivePortraitGraphs(public, digests=good).appearance(picture)
    with pytest.raises(ValueError, match=r"appearance_feature_extractor\.onnx: changed since the run began"):
        LivePortraitGraphs(public, digests={APPEARANCE: "0" * 64}).appearance(picture)


def test_pictures_of_any_size_are_fitted() -> None:
    wide = np.zeros((300, 300, 3), np.uint8)
    wide[:, 150:] = 200
    small = fit(wide, SIDE)
    assert small.shape == (SIDE, SIDE, 3) and small[:, :31].max() == 0 and small[:, 33:].min() == 200
    assert fit(small, SIDE) is small


# --- files that will not do


def damage(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def rename_op(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.op_type = node.op_type.replace("GridSample", "GridSample3D")


@pytest.fixture
def copied(public: Path, tmp_path: Path) -> Path:
    for path in public.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def render_once(folder: Path) -> None:
    graphs = LivePortraitGraphs(folder)
    graphs.render(graphs.appearance(pictures(1)[0]), *some_motion(1), 1)


def test_the_tensorrt_file_is_refused_with_its_remedy(copied: Path) -> None:
    damage(copied / RENDER, rename_op)
    with pytest.raises(ValueError, match=r"warping_spade\.onnx: its operator GridSample3D .* take warping_spade\.onnx"):
        render_once(copied)


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / RENDER).unlink()
    with pytest.raises(ValueError, match=r"warping_spade\.onnx: not found.*models check"):
        render_once(copied)


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_a_truncated_file_is_named(copied: Path, keep: int) -> None:
    data = (copied / RENDER).read_bytes()
    (copied / RENDER).write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"warping_spade\.onnx: .*(truncated|cannot open|another graph)"):
        render_once(copied)


def test_another_network_under_the_name_is_told(copied: Path) -> None:
    (copied / RENDER).write_bytes((copied / MOTION).read_bytes())
    with pytest.raises(ValueError, match=r"warping_spade\.onnx: another graph.*expected feature_3d, kp_driving, kp_source.*found img"):
        render_once(copied)


def test_a_low_opset_is_raised_in_memory_only_where_volumes_are_sampled(public: Path) -> None:
    before = (public / RENDER).read_bytes()
    raised = onnx.load_from_string(readable(public / RENDER))  # type: ignore[arg-type]
    assert raised.opset_import[0].version == 20
    modes = [a.s for n in raised.graph.node if n.op_type == "GridSample" for a in n.attribute if a.name == "mode"]
    assert modes and set(modes) == {b"linear"}
    assert readable(public / MOTION) == str(public / MOTION)
    assert (public / RENDER).read_bytes() == before


def test_without_cuda_the_cpu_is_chosen_and_the_reason_given() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    provider, why = choose_provider()
    assert provider == CPU and "onnxruntime-gpu" in why
