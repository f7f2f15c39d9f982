"""Models folders that cost nothing: random LivePortrait weights in the published layout, and ONNX graphs with the public names."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from tinyportrait import TINY

from model.liveportrait import LivePortrait
from model.liveportrait_weights import BASE_FILES, RETARGETING_FILE

SIDE = 32  # of the pictures that TINY takes, px
Values = dict[str, tuple[int | str, ...]]
GRAPHS: dict[str, tuple[Values, Values]] = {  # the public files, at TINY's sizes
    "appearance_feature_extractor.onnx": ({"img": (1, 3, 32, 32)}, {"output": (1, 3, 4, 8, 8)}),
    "motion_extractor.onnx": (
        {"img": (1, 3, 32, 32)},
        {"pitch": (1, 66), "yaw": (1, 66), "roll": (1, 66), "t": (1, 3), "exp": (1, 63), "scale": (1, 1), "kp": (1, 63)},
    ),
    "warping_spade.onnx": ({"feature_3d": (1, 3, 4, 8, 8), "kp_driving": (1, 21, 3), "kp_source": (1, 21, 3)}, {"out": (1, 3, 64, 64)}),
    "stitching.onnx": ({"input": (1, 126)}, {"output": (1, 65)}),
    "stitching_eye.onnx": ({"input": (1, 66)}, {"output": (1, 63)}),
    "stitching_lip.onnx": ({"input": (1, 65)}, {"output": (1, 63)}),
}


def write_official(folder: Path, seed: int = 0) -> Path:
    """base_models/ and retargeting_models/ with random weights."""
    torch.manual_seed(seed)
    networks = LivePortrait(TINY).eval()
    for name, file in BASE_FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(networks.get_submodule(name).state_dict()), folder / file)
    mlps = {"retarget_shoulder": networks.stitching, "retarget_mouth": networks.lip, "retarget_eye": networks.eye}
    (folder / RETARGETING_FILE).parent.mkdir(exist_ok=True)
    torch.save({key: dict(net.state_dict()) for key, net in mlps.items()}, folder / RETARGETING_FILE)
    return folder


def write_graph(path: Path, inputs: Values, outputs: Values, *, op_type: str = "Constant", value: float = 0.0) -> None:
    """A valid graph with these inputs and outputs, which computes nothing."""
    nodes = [helper.make_node(op_type, [], [name], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [value])) for name in outputs]
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, path.stem, *infos)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=10), path)


def write_graphs(folder: Path, *names: str) -> Path:
    """The public ONNX files, or those of them that are named."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or GRAPHS:
        write_graph(folder / name, *GRAPHS[name])
    return folder
