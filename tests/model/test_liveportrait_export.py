"""LivePortrait as ONNX graphs on a real ONNX Runtime: the reference's numbers, any batch, and nothing outside the standard operators."""

from __future__ import annotations

import copy
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from test_liveportrait import PARITY, slow_run
from tinyportrait import TINY
from torch import Tensor, nn

from model.liveportrait import OFFICIAL, LivePortrait, LivePortraitConfig, MotionOutput
from model.liveportrait_export import FILES, RenderGraph, export_liveportrait, to_onnx, volume_shape
from model.liveportrait_inference import AppearanceInference, WarpingInference
from model.liveportrait_inference_generator import GeneratorInference
from model.liveportrait_weights import load_liveportrait
from schemas.keypoints import HeadMotion

Arrays = dict[str, np.ndarray]

APPEARANCE, MOTION, RENDER, STITCHING, EYE, LIP = FILES
SIDE = 32
INTERMEDIATES = ["out", "mean", "W_out", "deformation", "occlusion", "image"]


def lively(seed: int, config: LivePortraitConfig = TINY) -> LivePortrait:
    """Random networks in which every part matters: batch norms that do something, masks that choose, an occlusion that varies."""
    torch.manual_seed(seed)
    net = LivePortrait(config).eval()
    for name, value in net.named_buffers():
        if "running_mean" in name:
            nn.init.normal_(value, 0, 0.1)
        elif "running_var" in name:  # small: channels of these narrow networks stay alive
            nn.init.uniform_(value, 0.02, 0.1)
    for name, value in net.named_parameters():
        if "grn" in name:
            nn.init.normal_(value)
        elif name.endswith(("mask.weight", "occlusion.weight")):
            value.data *= 20 if "mask" in name else 5
    return net


def session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(graph: ort.InferenceSession, **inputs: np.ndarray) -> Arrays:
    return dict(zip((o.name for o in graph.get_outputs()), graph.run(None, inputs), strict=True))


def render_session(net: LivePortrait, side: int, working: torch.dtype = torch.float32) -> ort.InferenceSession:
    """Warping and generator with what lies between them as further outputs."""
    baked, kp = copy.deepcopy(net).bake(), torch.zeros(2, TINY.motion.keypoints, 3)
    inputs = {"feature_3d": torch.zeros(volume_shape(net, side)), "kp_driving": kp, "kp_source": kp[:1]}
    graph = RenderGraph(baked, working, intermediates=True)
    return session(to_onnx(graph, inputs, INTERMEDIATES, batched=("kp_driving",)))


def run_all(net: LivePortrait, given: Arrays) -> Arrays:
    """Every tensor of the reference. Pictures go in as floats: the reference's own are not whole numbers of 255ths."""
    baked, side = copy.deepcopy(net).bake(), given["img"].shape[-1]
    img = torch.zeros(2, 3, side, side)
    appearance = session(to_onnx(AppearanceInference(baked.appearance, torch.float32), {"img": img[:1]}, ["output"], batched=()))
    motion = session(to_onnx(baked.motion, {"img": img}, list(MotionOutput._fields)))
    volume = run(appearance, img=given["img"][:1])["output"]
    rendered = run(render_session(net, side), feature_3d=volume, kp_driving=given["kp_driving"], kp_source=given["kp_source"])
    head = run(motion, img=given["img"])
    moved = HeadMotion.from_network(head)
    both = np.concatenate([np.broadcast_to(given["kp_source"], given["kp_driving"].shape), given["kp_driving"]], 1)
    mlps = {"stitch": (net.stitching, both.reshape(len(both), -1)), "eye": (net.eye, given["eye_in"]), "lip": (net.lip, given["lip_in"])}
    said = {name: run(session(to_onnx(mlp, {"input": torch.from_numpy(x)}, [name])), input=x)[name] for name, (mlp, x) in mlps.items()}
    points = {"R": moved.rotation, "x_s": moved.points()}
    return {"feature_3d": volume, **{f"M_{k}": v for k, v in head.items()}, **points, **rendered, **said}


def some_input(side: int = SIDE, frames: int = 2, seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    kp = {name: rng.normal(0, 0.3, (n, 21, 3)) for name, n in (("kp_source", 1), ("kp_driving", frames))}
    mlp = {f"{name}_in": rng.normal(0, 1, (frames, n)) for name, n in (("eye", 66), ("lip", 65))}
    return {k: v.astype(np.float32) for k, v in {"img": rng.random((frames, 3, side, side)), **kp, **mlp}.items()}


def check_picture(got: Arrays) -> None:
    """uint8, channels last, the nearest to the picture in 0..1; `mean` is the mean of that one."""
    assert got["out"].dtype == np.uint8
    expected = np.round(255 * got["image"].astype(np.float64)).transpose(0, 2, 3, 1)
    assert np.abs(got["out"] - expected).max() <= 1 and (got["out"] != expected).mean() < 1e-3
    np.testing.assert_allclose(got["mean"], got["image"].mean((1, 2, 3), dtype=np.float64), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def net() -> LivePortrait:
    return lively(20)


@pytest.fixture(scope="module")
def folder(net: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    export_liveportrait(net, folder, side=SIDE)
    return folder


@pytest.fixture(scope="module")
def graphs(folder: Path) -> dict[str, ort.InferenceSession]:
    return {name: session(folder / name) for name in FILES}


@pytest.fixture(scope="module")
def scene(net: LivePortrait) -> Arrays:
    """Inputs of the renderer: five driving frames."""
    given = some_input(frames=5)
    with torch.no_grad():
        volume = net.appearance(torch.from_numpy(given["img"][:1])).numpy()
    return {"feature_3d": volume, "kp_driving": given["kp_driving"], "kp_source": given["kp_source"]}


@pytest.mark.slow
def test_every_tensor_of_the_reference(shared: Path, tmp_path: Path) -> None:
    net = load_liveportrait(shared / PARITY / "weights")
    given, reference = (dict(np.load(shared / PARITY / name)) for name in ("in.npz", "ref.npz"))
    got = run_all(net, given)
    assert set(reference) <= set(got)
    for name, expected in reference.items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-3, err_msg=name)
    check_picture(got)

    export_liveportrait(net, tmp_path, side=64)
    shipped = run(session(tmp_path / RENDER), **{k: reference.get(k, given.get(k)) for k in ("feature_3d", "kp_driving", "kp_source")})
    assert list(shipped) == ["out", "mean"]
    check_picture(shipped | {"image": reference["image"]})


@pytest.mark.parametrize("seed", [10, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in (11, 12))])
def test_fresh_networks_equal_the_slow_reference(seed: int) -> None:
    net, given = lively(seed), some_input(seed=seed)
    got = run_all(net, given)
    check_picture(got)
    slow = slow_run(copy.deepcopy(net).double(), {k: v.astype(np.float64) for k, v in given.items()})
    moved = HeadMotion.from_network({k.removeprefix("M_"): v for k, v in slow.items() if k.startswith("M_")})
    for name, expected in (slow | {"R": moved.rotation, "x_s": moved.points()}).items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-3, err_msg=name)


OTHER = replace(  # no occlusion, no learned shortcut, and wider than ONNX Runtime's blocks
    TINY,
    appearance=replace(TINY.appearance, volume_channels=5, volume_depth=3, blocks=2),
    warping=replace(TINY.warping, volume_channels=5, volume_depth=3, compress=3, hourglass_width=20, hourglass_max=33, occlusion=False),
    generator=replace(TINY.generator, out_channels=8, upscale=3),
)


@pytest.mark.parametrize(("seed", "config"), [(30, TINY), (31, TINY), (32, OTHER)])
def test_inference_forms_equal_the_networks(seed: int, config: LivePortraitConfig) -> None:
    net = lively(seed, config).double()
    given = {k: torch.from_numpy(v).double() for k, v in some_input(frames=3, seed=seed).items()}
    baked = copy.deepcopy(net).bake()
    state = {k: v.clone() for k, v in baked.state_dict().items()}
    double = torch.float64
    with torch.no_grad():
        volume = net.appearance(given["img"])
        expected = net.warping(volume[:1], given["kp_driving"], given["kp_source"])
        picture = net.generator(expected.out)
        close(AppearanceInference(baked.appearance, double)(given["img"]), volume)
        warped = WarpingInference(baked.warping, double)(volume[:1], given["kp_driving"], given["kp_source"])
        for got, of in zip(warped, expected, strict=True):
            close(got, of)
        logits = GeneratorInference(baked.generator, double)(expected.out)
        close(torch.pixel_shuffle(logits.sigmoid(), config.generator.upscale), picture)
        for form in (AppearanceInference(baked.appearance, torch.float16), RenderGraph(baked, torch.float16)):
            assert torch.float16 in {p.dtype for p in form.parameters()}
    after = baked.state_dict()  # the forms took nothing of the networks and changed nothing
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in state.items())


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_whole_pictures_go_in(net: LivePortrait, graphs: dict[str, ort.InferenceSession]) -> None:
    img = np.random.default_rng(2).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    unit = torch.from_numpy(img).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        volume, head = net.appearance(unit[:1]), net.motion(unit)
    np.testing.assert_allclose(run(graphs[APPEARANCE], img=img[:1])["output"], volume, rtol=0, atol=1e-5)
    got = run(graphs[MOTION], img=img)
    assert list(got) == list(MotionOutput._fields)
    for name, expected in head._asdict().items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-5, err_msg=name)
    for file, mlp, width in ((STITCHING, net.stitching, 126), (EYE, net.eye, 66), (LIP, net.lip, 65)):
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(width))
        np.testing.assert_allclose(run(graphs[file], input=x.numpy())["output"], mlp(x).detach(), rtol=0, atol=1e-5)


def test_a_batch_is_its_frames(graphs: dict[str, ort.InferenceSession], scene: Arrays) -> None:
    def render(kp_driving: np.ndarray) -> Arrays:
        return run(graphs[RENDER], **scene | {"kp_driving": kp_driving})

    def same(got: Arrays, expected: Arrays) -> None:
        assert np.abs(got["out"].astype(int) - expected["out"]).max() <= 1
        np.testing.assert_allclose(got["mean"], expected["mean"], rtol=0, atol=1e-6)

    kp = scene["kp_driving"]
    together = render(kp)
    assert together["out"].shape == (5, 2 * SIDE, 2 * SIDE, 3) and len({frame.tobytes() for frame in together["out"]}) == 5
    singles = [render(kp[i : i + 1]) for i in range(5)]
    same(together, {k: np.concatenate([s[k] for s in singles]) for k in together})
    padded = render(np.concatenate([kp, np.repeat(kp[-1:], 3, 0)]))
    same({k: v[:5] for k, v in padded.items()}, together)
    order = np.array([3, 0, 4, 2, 1])
    same(render(kp[order]), {k: v[order] for k, v in together.items()})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_frame_that_is_not_finite_shows(graphs: dict[str, ort.InferenceSession], scene: Arrays, bad: float) -> None:
    kp = scene["kp_driving"].copy()
    kp[1, 7, 0] = bad
    mean = run(graphs[RENDER], **scene | {"kp_driving": kp})["mean"]
    assert np.isnan(mean).tolist() == [False, True, False, False, False]
    assert np.isnan(run(graphs[RENDER], **scene | {"feature_3d": scene["feature_3d"] * np.float32(bad)})["mean"]).all()


def test_inputs_and_operators(folder: Path, graphs: dict[str, ort.InferenceSession], net: LivePortrait) -> None:
    taken = {file: {i.name: i.shape for i in graph.get_inputs()} for file, graph in graphs.items()}
    k = TINY.motion.keypoints
    assert taken[RENDER] == {"feature_3d": list(volume_shape(net, SIDE)), "kp_driving": ["batch", k, 3], "kp_source": [1, k, 3]}
    assert taken[APPEARANCE] == {"img": [1, SIDE, SIDE, 3]} and taken[MOTION] == {"img": ["batch", SIDE, SIDE, 3]}
    assert [taken[file]["input"] for file in (STITCHING, EYE, LIP)] == [["batch", 126], ["batch", 66], ["batch", 65]]
    for path in sorted(folder.iterdir()):
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version >= 20) for o in model.opset_import] == [("", True)]
        assert {node.domain for node in model.graph.node} == {""} and not model.functions
        assert not any(t.external_data for t in model.graph.initializer)
        assert model.producer_name == "crosspair" and str(Path(__file__).parents[2]).encode() not in path.read_bytes()
        about = {p.key: p.value for p in model.metadata_props}
        assert about == {"crosspair.format": "liveportrait/1", "crosspair.side": str(SIDE), "crosspair.precision": "fp32"}


@pytest.mark.campaign
def test_exports_of_the_same_networks_are_equal(net: LivePortrait, folder: Path, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    paths = export_liveportrait(net, tmp_path, side=SIDE)
    assert [p.name for p in paths] == list(FILES) and sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    for path in paths:
        assert sha256(path.read_bytes()).digest() == sha256((folder / path.name).read_bytes()).digest(), path.name
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.campaign
def test_half_precision(net: LivePortrait, graphs: dict[str, ort.InferenceSession], scene: Arrays, tmp_path: Path) -> None:
    paths = {path.name: path for path in export_liveportrait(net, tmp_path, side=SIDE, precision="fp16")}
    models = {name: onnx.load(path) for name, path in paths.items()}
    precision = {name: next(p.value for p in model.metadata_props if p.key == "crosspair.precision") for name, model in models.items()}
    assert precision == {name: "fp16" if name in (APPEARANCE, RENDER) else "fp32" for name in FILES}
    for file in (APPEARANCE, RENDER):
        graph = onnx.shape_inference.infer_shapes(models[file], strict_mode=True, data_prop=True).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
        types |= {t.name: t.data_type for t in graph.initializer}
        convs = [types[node.input[1]] for node in graph.node if node.op_type == "Conv"]
        assert convs.count(onnx.TensorProto.FLOAT) == (file == RENDER)  # the one before the resampling
        exact = {"GridSample", "MatMul", "Exp", "Softmax", "InstanceNormalization", "ReduceMean"}
        found = {(node.op_type, types[node.input[0]]) for node in graph.node if node.op_type in exact}
        assert found == ({(name, onnx.TensorProto.FLOAT) for name in exact} if file == RENDER else set())

    img = np.random.default_rng(2).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    volumes = [run(graph, img=img)["output"] for graph in (session(paths[APPEARANCE]), graphs[APPEARANCE])]
    assert volumes[0].dtype == np.float32 and volumes[0].std() > 0.1
    np.testing.assert_allclose(*volumes, rtol=0, atol=0.01)
    half, full = (run(graph, **scene) for graph in (session(paths[RENDER]), graphs[RENDER]))
    assert half["out"].dtype == np.uint8 and half["mean"].dtype == np.float32
    assert np.abs(half["out"].astype(int) - full["out"]).max() <= 4
    np.testing.assert_allclose(half["mean"], full["mean"], rtol=0, atol=2e-4)
    with torch.no_grad():  # ONNX Runtime computes some of it in float32 on the CPU; torch does not
        form = RenderGraph(copy.deepcopy(net).bake(), torch.float16)
        out, mean = form(*(torch.from_numpy(scene[k]) for k in ("feature_3d", "kp_driving", "kp_source")))
    assert np.abs(out.numpy().astype(int) - full["out"]).max() <= 4
    np.testing.assert_allclose(mean, full["mean"], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("side", "precision", "reason"),
    [(40, "fp32", "side 40: must be a multiple of"), (0, "fp32", "side 0"), (32, "int8", "precision 'int8'")],
)
def test_what_cannot_be_exported(net: LivePortrait, tmp_path: Path, side: int, precision: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        export_liveportrait(net, tmp_path, side=side, precision=precision)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_half_networks_are_refused(net: LivePortrait, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be float32"):
        export_liveportrait(copy.deepcopy(net).half(), tmp_path, side=SIDE)


@pytest.mark.campaign
def test_full_width(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = LivePortrait(OFFICIAL)
    paths = export_liveportrait(net, tmp_path)
    assert 380 < sum(path.stat().st_size for path in paths) / 1e6 < 800
    kp = np.random.default_rng(0).normal(0, 0.3, (2, 1, 21, 3)).astype(np.float32)
    img = np.random.default_rng(1).integers(0, 256, (1, 256, 256, 3), np.uint8)
    volume = run(session(tmp_path / APPEARANCE), img=img)["output"]
    got = run(session(tmp_path / RENDER), feature_3d=volume, kp_driving=kp[0], kp_source=kp[1])
    assert got["out"].shape == (1, 512, 512, 3) and np.isfinite(got["mean"]).all()
