"""LivePortrait's networks as ONNX graphs on ONNX Runtime: our own export or the public files, on CPU or CUDA, bound by name.

Both kinds of files have the same names. Ours take and give uint8 pictures (N, S, S, 3) and any number of driving frames; the public
ones take and give float32 pictures (1, 3, S, S) in 0..1, one frame at a time. Nothing outside this module sees the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import onnx
import onnxruntime as ort

from schemas.ids import sha256_of
from schemas.keypoints import COPIED_EXPRESSION, HeadMotion
from stages.quiet import silent_stderr

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
APPEARANCE, MOTION, RENDER, STITCHING = (
    "appearance_feature_extractor.onnx",
    "motion_extractor.onnx",
    "warping_spade.onnx",
    "stitching.onnx",
)
_VOLUME_OPSET = 20  # from here on ONNX Runtime's CUDA kernel samples volumes; before, it fails at run time
_MOTION_OUTPUTS = ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")
_AGAIN = "export it again with `crosspair models export`, or download it again"

Value: TypeAlias = Any  # an array, or an ort.OrtValue on the device


def choose_provider() -> tuple[str, str]:
    """The best that this process can run on, CUDA or CPU, and why it is not CUDA."""
    if CUDA not in ort.get_available_providers():
        return CPU, "this onnxruntime has no CUDA provider; install onnxruntime-gpu in its place (docs/models.md)"
    if not _starts_on_cuda():
        return CPU, "onnxruntime-gpu cannot start CUDA: no GPU is seen, or its CUDA and cuDNN libraries are missing (docs/models.md)"
    return CUDA, ""


def _starts_on_cuda() -> bool:
    """Tries a graph of one node: ONNX Runtime turns to the CPU without an error when a CUDA library is missing."""
    if hasattr(ort, "preload_dlls"):
        with silent_stderr():
            ort.preload_dlls()  # those that pip brought, or PyTorch's
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _VOLUME_OPSET)], ir_version=10)
    with silent_stderr():
        session = ort.InferenceSession(model.SerializeToString(), providers=[CUDA, CPU])
    return CUDA in session.get_providers()


@dataclass(frozen=True)
class Rendered:
    """`frames` uint8 RGB (N, 2 S, 2 S, 3); `finite` bool (N,): False where the network gave NaN or infinity."""

    frames: np.ndarray
    finite: np.ndarray


class LivePortraitGraphs:
    """The graphs of one folder. A graph is opened when it is first needed: reading motion needs no generator.

    Args:
        provider: CUDA or CPU, as ONNX Runtime names them.
        threads: of one graph on the CPU; 0 lets ONNX Runtime choose.
        digests: file -> sha256; a file that is named here and has another one is an error.
    """

    def __init__(self, folder: Path, *, provider: str = CPU, threads: int = 0, digests: Mapping[str, str] | None = None) -> None:
        self.folder, self.provider, self._digests = folder, provider, digests or {}
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3
        self._graphs: dict[str, Graph] = {}

    def appearance(self, picture: np.ndarray) -> ort.OrtValue:
        """The volume of uint8 RGB (H, W, 3), which stays on the device."""
        graph = self._graph(APPEARANCE, ["img"])
        volume = graph.run({"img": graph.pictures([fit(picture, graph.side("img"))])}, keep=("output",))["output"]
        assert isinstance(volume, ort.OrtValue)
        return volume

    @property
    def side(self) -> int:
        """Side of the pictures that the motion network takes, px."""
        return self._graph(MOTION, ["img"], _MOTION_OUTPUTS).side("img")

    def motion(self, pictures: Sequence[np.ndarray], batch: int) -> HeadMotion:
        """Of uint8 RGB pictures (S, S, 3), in batches of one size, the last one padded."""
        graph = self._graph(MOTION, ["img"], _MOTION_OUTPUTS)
        parts = [graph.run({"img": graph.pictures(p)}) for p in _padded(pictures, graph.batch("img", batch))]
        joined = {name: np.concatenate([part[name] for part in parts])[: len(pictures)] for name in _MOTION_OUTPUTS}
        motion = HeadMotion.from_network(joined)
        if motion.kp.shape[1:] != COPIED_EXPRESSION.shape:
            raise ValueError(f"{graph.path}: {motion.kp.shape[1]} keypoints; this engine knows LivePortrait's {len(COPIED_EXPRESSION)}")
        return motion

    def render(self, volume: ort.OrtValue, x_s: np.ndarray, x_d: np.ndarray, batch: int) -> Rendered:
        """Driving keypoints (N, K, 3), N at most `batch`, from one source's volume and keypoints (1, K, 3); padded to `batch`."""
        graph = self._graph(RENDER, ["feature_3d", "kp_driving", "kp_source"])
        source = np.ascontiguousarray(x_s, np.float32)
        sound = np.isfinite(x_d).all((1, 2))  # of what goes in: ReLU makes zeros of NaN
        results = []
        for driving in _padded(list(x_d.astype(np.float32)), graph.batch("kp_driving", batch)):
            given: dict[str, Value] = {"feature_3d": volume, "kp_driving": np.stack(driving), "kp_source": source}
            results.append(graph.run(given))
        out = np.concatenate([r["out"] for r in results])[: len(x_d)]
        if out.dtype == np.uint8:
            return Rendered(out, sound & np.isfinite(np.concatenate([r["mean"] for r in results])[: len(x_d)]))
        finite = sound & np.isfinite(out).all((1, 2, 3))
        frames = np.clip(np.nan_to_num(out).transpose(0, 2, 3, 1) * 255 + 0.5, 0, 255).astype(np.uint8)
        return Rendered(frames, finite)

    def stitch(self, x_s: np.ndarray, x_d: np.ndarray) -> np.ndarray:
        """What the stitching network says of keypoints (1, K, 3) driven to (T, K, 3): (T, 3 K + 2), for schemas.keypoints.stitched."""
        graph = self._graph(STITCHING, ["input"], ["output"])
        both = np.concatenate([np.repeat(x_s, len(x_d), 0), x_d], 1).reshape(len(x_d), -1).astype(np.float32)
        parts = [graph.run({"input": np.stack(p)})["output"] for p in _padded(list(both), graph.batch("input", 64))]
        return np.concatenate(parts)[: len(x_d)]

    def _graph(self, name: str, inputs: Sequence[str], outputs: Sequence[str] = ()) -> Graph:
        if name not in self._graphs:
            check_digest(self.folder / name, self._digests)
            self._graphs[name] = Graph(self.folder / name, self._options, self.provider, inputs, outputs)
        return self._graphs[name]


class Graph:
    """One ONNX file: inputs and outputs by name, values on the device stay there."""

    def __init__(self, path: Path, options: ort.SessionOptions, provider: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.path, self._device = path, "cuda" if provider == CUDA else "cpu"
        exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}  # half precision is a choice, made when exporting
        providers: list[Any] = [(CUDA, exact), CPU] if provider == CUDA else [CPU]
        model = readable(path)
        try:
            self._session = ort.InferenceSession(model, options, providers=providers)
        except Exception as e:  # ONNX Runtime raises classes of its own that have nothing else in common
            raise ValueError(f"{path}: ONNX Runtime cannot open it ({str(e).splitlines()[0][:200]}); {_AGAIN}") from e
        if provider == CUDA and CUDA not in self._session.get_providers():
            raise ValueError(f"{path}: CUDA failed while the graph was opened; is the GPU's memory full?")
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._outputs = [o.name for o in self._session.get_outputs()]
        if set(self._inputs) != set(inputs) or not set(outputs) <= set(self._outputs):
            found = f"{', '.join(self._inputs)} -> {', '.join(self._outputs)}"
            expected = f"{', '.join(inputs)} -> {', '.join(outputs) or 'out'}"
            raise ValueError(f"{path}: another graph than {path.name}: expected {expected}, found {found}; {_AGAIN}")

    def run(self, inputs: Mapping[str, Value], keep: Sequence[str] = ()) -> dict[str, Any]:
        """Outputs by name: arrays, or values that stay on the device for those in `keep`."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._outputs:
            binding.bind_output(name, self._device if name in keep else "cpu")
        self._session.run_with_iobinding(binding)
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        return {name: value if name in keep else value.numpy() for name, value in values.items()}

    def batch(self, name: str, wanted: int) -> int:
        """How many frames go into one call: what the graph was exported for, or `wanted`."""
        size = self._inputs[name].shape[0]
        return size if isinstance(size, int) else wanted

    def side(self, name: str) -> int:
        """Of the square picture that an input takes, px."""
        sides = [n for n in self._inputs[name].shape[1:] if n != 3]
        if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
            raise ValueError(f"{self.path}: {name} is {self._inputs[name].shape}, expected square pictures of one size; {_AGAIN}")
        return sides[0]

    def pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 RGB (S, S, 3) each, as the graph wants them."""
        stack = np.stack(pictures)
        if self._inputs["img"].type == "tensor(uint8)":
            return stack
        return stack.transpose(0, 3, 1, 2).astype(np.float32) / 255


def check_digest(path: Path, digests: Mapping[str, str]) -> None:
    """Raises ValueError when the file is not the one of that name in `digests`: fingerprints would not say what drew the frames."""
    expected = digests.get(path.name)
    if expected and path.is_file() and sha256_of(path) != expected:
        raise ValueError(f"{path}: changed since the run began (sha256 {expected} expected); put that file back, or start the run again")


def readable(path: Path) -> str | bytes:
    """What ONNX Runtime opens: the file, or its bytes after what had to be changed in memory.

    Raises:
        ValueError: missing, no ONNX file, or made for a TensorRT plugin.
    """
    if not path.is_file():
        raise ValueError(f"{path}: not found. `crosspair models check {path.parent}` says what is expected there")
    try:
        model = onnx.load(path)
    except Exception as e:  # protobuf's and onnx's own
        raise ValueError(f"{path}: expected an ONNX file; truncated, or another kind of file; {_AGAIN}") from e
    ops = {node.op_type for node in model.graph.node}
    if "GridSample3D" in ops:
        raise ValueError(
            f"{path}: its operator GridSample3D exists only as a TensorRT plugin (the public warping_spade-fix.onnx); "
            f"take warping_spade.onnx from the same release"
        )
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if "GridSample" not in ops or opset >= _VOLUME_OPSET:
        return str(path)
    try:
        return onnx.version_converter.convert_version(model, _VOLUME_OPSET).SerializeToString()
    except Exception as e:
        raise ValueError(f"{path}: ONNX opset {opset} cannot be raised to {_VOLUME_OPSET}, which CUDA needs for volumes: {e}") from e


def fit(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 RGB (H, W, 3) as (side, side, 3)."""
    if picture.shape[:2] == (side, side):
        return picture
    shrinks = picture.shape[0] > side
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _padded(items: Sequence[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Batches of exactly `size`: the last item again fills the last batch, since a new shape would make CUDA tune itself anew."""
    batches = []
    for i in range(math.ceil(len(items) / size)):
        batch = list(items[i * size : (i + 1) * size])
        batches.append(batch + [batch[-1]] * (size - len(batch)))
    return batches
