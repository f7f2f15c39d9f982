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
