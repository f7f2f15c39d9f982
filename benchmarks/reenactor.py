"""LivePortrait at full width on this CPU: a frame by the torch networks against a frame by the exported graphs.

    python -m benchmarks.reenactor [--runs 5] [--threads 1]

The weights are random, with batch norms set so that nothing saturates: times do not depend on what the networks know. Both ways take
turns, and what counts is the process's CPU time: on a machine that others use, wall time says more about them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from model.liveportrait import OFFICIAL, LivePortrait
from model.liveportrait_export import FILES, export_liveportrait

SIDE_PX = 256
AIM = 0.8  # ONNX Runtime's CPU time for a frame, as a part of torch's
APPEARANCE, MOTION, RENDER, *_ = FILES

T = TypeVar("T")


def calibrated_networks(seed: int = 0) -> LivePortrait:
    """Random networks at full width whose batch norms hold the statistics of one random input."""
    torch.manual_seed(seed)
    networks = LivePortrait(OFFICIAL).train()
    for module in networks.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        volume = networks.appearance(torch.rand(1, 3, SIDE_PX, SIDE_PX))
        networks.generator(networks.warping(volume, *some_keypoints()).out)
    return networks.eval()


def some_keypoints() -> tuple[Tensor, Tensor]:
    """Driving and source (1, K, 3), as far apart as those of two frames of one clip."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(1, OFFICIAL.motion.keypoints, 3, generator=generator) * 0.3
    return source + torch.randn(source.shape, generator=generator) * 0.05, source


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """The result, CPU s of this process, wall s."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def spread(seconds: list[float]) -> str:
    return f"{min(seconds):7.2f}{median(seconds):7.2f}{max(seconds):7.2f}"


def torch_against_onnx(runs: int, threads: int) -> bool:
    """Prints the table; whether the aim is met."""
    torch.set_num_threads(threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    networks = calibrated_networks()
    with tempfile.TemporaryDirectory() as folder:
        paths, _, export_s = timed(lambda: export_liveportrait(networks, Path(folder), side=SIDE_PX))
        print(f"export: {export_s:.0f} s, {sum(p.stat().st_size for p in paths) / 1e6:.0f} MB")
        sessions = {p.name: ort.InferenceSession(p, options, providers=["CPUExecutionProvider"]) for p in paths}
    networks.bake()
    img = torch.randint(0, 256, (1, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8)
    unit = img.permute(0, 3, 1, 2) / 255
    driving, source = some_keypoints()
    with torch.no_grad():
        volume = networks.appearance(unit)
        ways: dict[str, tuple[Callable[[], Tensor], Callable[[], np.ndarray]]] = {
            "appearance, once per source": (
                lambda: networks.appearance(unit),
                lambda: sessions[APPEARANCE].run(None, {"img": img.numpy()})[0],
            ),
            "motion, once per driving frame": (
                lambda: networks.motion(unit).kp,
                lambda: sessions[MOTION].run(["kp"], {"img": img.numpy()})[0],
            ),
            "warping and generator, per frame": (
                lambda: (networks.generator(networks.warping(volume, driving, source).out) * 255).permute(0, 2, 3, 1),
                lambda: sessions[RENDER].run(
                    ["out"], {"feature_3d": volume.numpy(), "kp_driving": driving.numpy(), "kp_source": source.numpy()}
                )[0],
            ),
        }
        print(f"CPU s, {runs} runs by turns, {threads} thread(s); min, median, max")
        print(f"{'':34s}{'torch eager':>21s}{'ONNX Runtime':>21s}   ratio   max difference")
        for name, (eager, graph) in ways.items():
            eager(), graph()
            cpu: tuple[list[float], list[float]] = ([], [])
            for _ in range(runs):
                expected, seconds, _ = timed(eager)
                cpu[0].append(seconds)
                got, seconds, _ = timed(graph)
                cpu[1].append(seconds)
            ratio = median(cpu[1]) / median(cpu[0])
            difference = np.abs(got.astype(np.float64) - expected.numpy()).max()
            print(f"{name:34s}{spread(cpu[0])}{spread(cpu[1])}{ratio:8.2f}{difference:17.2g}", flush=True)
    return ratio <= AIM


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    return not torch_against_onnx(args.runs, args.threads)


if __name__ == "__main__":
    sys.exit(main())
