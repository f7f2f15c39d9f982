"""An identity network of one layer: it tells faces apart by the light in them, block by block. Enough for what a run does with vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

BLOCK = 14  # px: 8 x 8 blocks of 3 colours


def tiny_network(path: Path, seed: int = 0) -> Path:
    """1x3x112x112 -> 1x192: mean colours of blocks, less their mean over the face; `seed` makes another file of the same kind."""
    nodes = [
        helper.make_node("AveragePool", ["face"], ["blocks"], kernel_shape=[BLOCK, BLOCK], strides=[BLOCK, BLOCK]),
        helper.make_node("GlobalAveragePool", ["face"], ["mean"]),
        helper.make_node("Sub", ["blocks", "mean"], ["rest"]),
        helper.make_node("Mul", ["rest", "weights"], ["weighed"]),
        helper.make_node("Flatten", ["weighed"], ["embedding"]),
    ]
    weights = np.random.default_rng(seed).uniform(0.9, 1.1, (1, 3, 8, 8)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 192])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def box_network(path: Path, box: tuple[float, float, float, float]) -> Path:
    """SCRFD's outputs with one face, at `box` (x0, y0, x1, y1) in px of its view of 640 x 640, whatever the picture shows."""
    outputs, nodes, constants = [], [], {}
    for stride in (8, 16, 32):
        n = 2 * (640 // stride) ** 2
        rows = {"score": np.zeros((n, 1)), "bbox": np.zeros((n, 4)), "kps": np.zeros((n, 10))}
        if stride == 8:
            rows["score"][0], rows["bbox"][0] = 0.9, np.array(box) / stride * [-1, -1, 1, 1]  # as seen from the corner
        for kind, values in rows.items():
            constants[f"{kind}_{stride}_c"] = values.astype(np.float32)
            nodes.append(helper.make_node("Identity", [f"{kind}_{stride}_c"], [f"{kind}_{stride}"]))
            outputs.append(f"{kind}_{stride}")
    graph = helper.make_graph(
        nodes,
        "box",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 640, 640])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
