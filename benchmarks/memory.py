"""Peak memory of a worker against the length of its clip: 20 s and 200 s through every stage that touches frames.

    python -m benchmarks.memory

Each length runs in a fresh process, which does what a worker does: ingest, faces, motion, reenact, regions. A long clip may only
cost more time. The second figure has `faces.max_clip_s` raised to the whole length, to show that streaming, not cutting, bounds it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg

from schemas.store import DiskStore

LENGTHS_S = (20, 200)
SIZE_PX = 256
FPS = 25


def make_clip(folder: Path, seconds: int) -> Path:
    """The demo's four seconds of one person, forwards and backwards by turns: no cut anywhere."""
    from pipeline.demo_clips import make_demo_clips

    short, both, out = folder / "raw" / "clips" / "collins.mp4", folder / "both.mp4", folder / f"{seconds}.mp4"
    if not both.is_file():
        make_demo_clips(folder / "raw", only=("collins",), seconds=4.0)
        video = ffmpeg.input(str(short)).video.split()
        run_ffmpeg(ffmpeg.concat(video[0], video[1].filter("reverse")).output(str(both)))
    run_ffmpeg(ffmpeg.input(str(both), stream_loop=seconds // 8 + 1).output(str(out), c="copy", t=seconds))
    return out


def run_ffmpeg(stream: Any) -> None:
    command = stream.global_args("-v", "error", "-y").compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    subprocess.run(command, check=True)


def work(clip: Path, folder: Path, max_clip_s: float) -> dict[str, float]:
    """All stages on one clip; peak memory after each, in MB."""
    from schemas.units import Driving, Performance, SourceFile
    from stages.faces import Faces, FacesConfig
    from stages.ingest import Ingest, IngestConfig
    from stages.meshwarp import MeshWarp, MeshWarpConfig
    from stages.outputs import Outputs
    from stages.portraits import portrait_of_clip
    from stages.reenact import MotionStage, Reenact
    from stages.regions import RegionsStage

    def out() -> Iterator[Outputs]:
        n = 0
        while True:
            yield Outputs(DiskStore(folder), f"attempt-{n}")
            n += 1

    attempts, peaks = out(), {}
    source = SourceFile(id="source", uri=str(clip), identity="collins", licence="", consent="")
    _, shots = Ingest(IngestConfig())(source, next(attempts))
    peaks["ingest"] = peak_mb()
    cut = Faces(FacesConfig(max_clip_s=max_clip_s), FPS, SIZE_PX)
    clips = [c for shot in shots for c in cut(shot, next(attempts))[1]]
    peaks["faces"] = peak_mb()
    engine = MeshWarp(MeshWarpConfig())
    motion, reenact, regions = MotionStage(engine), Reenact(engine, ""), RegionsStage()
    for c in clips:
        _, (pair,) = motion(Performance(id=c.id, clip=c, portraits=[portrait_of_clip(clips[0])]), next(attempts))
        driving: list[Driving] = reenact(pair, next(attempts))[1]
        peaks["reenact"] = peak_mb()
        regions(driving[0], next(attempts))
    peaks["regions"] = peak_mb()
    return {**peaks, "clips": len(clips), "frames": sum(c.frames for c in clips)}


def peak_mb() -> float:
    """Not getrusage's ru_maxrss: a fresh process starts with that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs=2, metavar=("CLIP", "MAX_CLIP_S"), help="what each fresh process is told")
    told = parser.parse_args().work
    if told:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(work(Path(told[0]), Path(folder), float(told[1]))))
        return 0
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'cut at':>8}{'length':>8}{'clips':>7}{'frames':>8}   peak MB after: ingest   faces  reenact  regions")
        for whole in (False, True):
            last = []
            for seconds in LENGTHS_S:
                max_clip_s = 2.0 * seconds if whole else 10.0
                command = [sys.executable, "-m", "benchmarks.memory", "--work", str(make_clip(Path(folder), seconds)), str(max_clip_s)]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                peaks = "".join(f"{result[s]:9.0f}" for s in ("ingest", "faces", "reenact", "regions"))
                print(f"{max_clip_s:7.0f}s{seconds:7d}s{result['clips']:7.0f}{result['frames']:8.0f}{'':>13}{peaks}", flush=True)
                last.append(result["regions"])
            ratios.append(last[1] / last[0])
    print(f"peak at 200 s / peak at 20 s: {ratios[0]:.2f} with clips of 10 s, {ratios[1]:.2f} with one clip of the whole length")
    return ratios[0] > 1.25  # allocators differ by a tenth from run to run


if __name__ == "__main__":
    sys.exit(main())
