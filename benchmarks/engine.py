"""The LivePortrait engine in use: what each further identity costs, memory against the length of a clip, frames per second on a GPU.

    python -m benchmarks.engine

Networks have random weights: they draw noise, in the time that trained ones take. On a CPU the official width runs at a quarter of
the pixels (side 128), so that the benchmark ends; on a GPU, when ONNX Runtime has one, at the official size in fp32 and fp16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.memory import peak_mb
from model.liveportrait import OFFICIAL, AppearanceConfig, LivePortrait, LivePortraitConfig, MotionConfig
from model.liveportrait_export import export_liveportrait
from model.liveportrait_generator import GeneratorConfig
from model.liveportrait_warping import WarpingConfig
from stages.head import Pose, canonical, rotation_of
from stages.liveportrait import LivePortrait as Engine
from stages.liveportrait_graphs import CPU, CUDA, LivePortraitGraphs, choose_provider
from stages.liveportrait_settings import LivePortraitConfig as Settings
from stages.reenact import ClipView, Portrait

SIZE_PX, IDENTITIES, CLIP_FRAMES, REPEATS = 576, 4, 4, 3
LENGTHS = (50, 500)  # frames
FLOOR_MS = 1.56  # arithmetic floor of warping and generator a frame on an H200, bf16 dense
TINY = LivePortraitConfig(
    appearance=AppearanceConfig(width=4, volume_channels=3, volume_depth=4, blocks=1),
    motion=MotionConfig(depths=(1, 1), dims=(4, 8)),
    warping=WarpingConfig(
        volume_channels=3, volume_depth=4, out_channels=8, compress=2, hourglass_width=3, hourglass_max=6, hourglass_levels=2
    ),
    generator=GeneratorConfig(in_channels=8, out_channels=4, middle_blocks=1, spade_hidden=6),
)


def export(config: LivePortraitConfig, folder: Path, side: int, precision: str = "fp32") -> Path:
    torch.manual_seed(0)
    export_liveportrait(LivePortrait(config).eval(), folder, side=side, precision=precision)  # type: ignore[arg-type]
    return folder


def clip_of(frames: int) -> ClipView:
    """A made-up head that turns and sways before noise: the networks do not care what they see."""
    t = np.linspace(0, 2 * np.pi, frames, endpoint=False)
    turns = np.stack([15 * np.sin(t), 5 * np.cos(t), 3 * np.sin(t)], -1)
    places = np.stack([SIZE_PX / 2 + 10 * np.sin(t), SIZE_PX / 2 + 0 * t, 0 * t], -1)
    points = Pose(np.full(frames, 0.4 * SIZE_PX), rotation_of(turns), places).apply(canonical()).astype(np.float32)
    picture = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)

    def pictures() -> Iterator[np.ndarray]:
        yield from (np.roll(picture, k, 1) for k in range(frames))

    return ClipView(frames=pictures, points=points, fps=25.0, size_px=SIZE_PX)


def portrait_of(clip: ClipView) -> Portrait:
    return Portrait(next(clip.frames()), clip.points[0])


def drive(engine: Engine, clip: ClipView, identities: int) -> int:
    """Motion once, each identity once; frames drawn."""
    motion, portrait = engine.motion(clip), portrait_of(clip)
    return sum(sum(1 for _ in engine.render(engine.appearance(portrait), motion)) for _ in range(identities))


def identities(folder: Path) -> None:
    """K identities driven by one clip, and K times one identity, by turns."""
    engine, clip = (
        Engine(Settings(calibration_frames=0, batch=4), export(OFFICIAL, folder / "official", 128), threads=1),
        clip_of(CLIP_FRAMES),
    )
    drive(engine, clip_of(1), 1)  # opens the graphs
    together, apart, motion, look = [], [], [], []
    for _ in range(REPEATS):
        together.append(seconds(lambda: drive(engine, clip, IDENTITIES)))
        apart.append(seconds(lambda: [drive(engine, clip, 1) for _ in range(IDENTITIES)]))
        motion.append(seconds(lambda: engine.motion(clip)))
        look.append(seconds(lambda: engine.appearance(portrait_of(clip))))
    print(
        f"official width, side 128, one core, {CLIP_FRAMES} frames, {IDENTITIES} identities; CPU seconds, min / median / max of {REPEATS}"
    )
    for name, values in (("motion of the clip", motion), ("appearance of an identity", look)):
        print(f"  {name:34s}{spread(values)}")
    for name, values in ((f"{IDENTITIES} identities, one clip", together), (f"{IDENTITIES} times one identity", apart)):
        print(f"  {name:34s}{spread(values)}")
    ratios = [a / b for a, b in zip(together, apart, strict=True)]
    print(f"  {'ratio':34s}{spread(ratios)}")


def seconds(work: object) -> float:
    start = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - start


def spread(values: list[float]) -> str:
    return f"{min(values):8.3f} / {median(values):.3f} / {max(values):.3f}"


def memory(folder: Path) -> bool:
    """Peak of a fresh process for two lengths of clip; the networks are tiny, so that what grows would show."""
    export(TINY, folder / "tiny", 32)
    peaks = []
    for frames in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.engine", "--drive", str(folder / "tiny"), str(frames)]
        peaks.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    print(f"peak memory of a process that draws {LENGTHS[0]} and {LENGTHS[1]} frames of {SIZE_PX} px: {peaks[0]:.0f} and {peaks[1]:.0f} MB")
    return peaks[1] > 1.25 * peaks[0]  # all frames of the longer clip are 500 MB


def gpu(folder: Path) -> None:
    provider, why = choose_provider()
    if provider != CUDA:
        print(f"GPU: not measured; {why}")
        return
    frames: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    x_s, x_d = rng.normal(0, 0.3, (1, 21, 3)), rng.normal(0, 0.3, (64, 21, 3))
    for precision in ("fp32", "fp16"):
        graphs = LivePortraitGraphs(export(OFFICIAL, folder / precision, 256, precision), provider=CUDA)
        volume = graphs.appearance(np.zeros((256, 256, 3), np.uint8))
        for batch in (1, 8, 16):
            rates = []
            for repeat in range(REPEATS + 1):
                start = time.perf_counter()
                parts = [graphs.render(volume, x_s, x_d[i : i + batch], batch).frames for i in range(0, len(x_d), batch)]
                if repeat:  # the first one tunes
                    rates.append(len(x_d) / (time.perf_counter() - start))
            frames[precision] = np.concatenate(parts)
            floor = f"{1000 / median(rates) / FLOOR_MS:.1f} x the floor of {FLOOR_MS} ms"
            print(f"  {precision}, batch {batch:2d}: frames/s {spread(rates)}; {1000 / median(rates):.2f} ms a frame, {floor}")
    error = np.abs(frames["fp32"].astype(int) - frames["fp16"])
    high = np.percentile(error, 99.9)
    print(f"  fp16 against fp32, levels of 255: mean {error.mean():.3f}, 99.9th percentile {high:.0f}, max {error.max()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drive", nargs=2, metavar=("MODELS", "FRAMES"), help="what each fresh process is told")
    told = parser.parse_args().drive
    if told:
        engine = Engine(Settings(calibration_frames=0), Path(told[0]), provider=CPU, threads=1)
        assert drive(engine, clip_of(int(told[1])), 1) == int(told[1])
        print(json.dumps(peak_mb()))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        grows = memory(Path(folder))
        identities(Path(folder))
        gpu(Path(folder))
    return grows


if __name__ == "__main__":
    sys.exit(main())
