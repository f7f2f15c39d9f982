"""A finished run of ten thousand units, run again, and asked for its status: what reading the ledger costs.

    python -m benchmarks.noop

Stages are synthetic and cheap: they write files of a few bytes, in this process. Everything else is the run as it is: listing, ledger,
plan, verdicts, tables, tars, index.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from pipeline import run as run_module
from pipeline import worker
from pipeline.config import RunConfig
from pipeline.executor import Progress
from pipeline.status import status
from pipeline.worker import OUTCOME, ROW, StageWorker
from schemas.ids import clip_id, digest, pair_id, shot_id
from schemas.store import Store
from schemas.units import Clip, Driving, Pair, Performance, Shot, SourceFile
from stages.outputs import Outputs

SOURCES, REPEATS = 1500, 3
RUN_S, STATUS_S = 10.0, 2.0  # what a user may have to wait
_FACE = {"face_px": 200.0, "crop_scale": 2.2, "upscale": 1.0, "brightness": 90.0, "other_faces": 0.0, "mouth_activity": 0.1, "hidden": 0.0}
_FACE |= {f"{a}_{what}deg": 0.0 for a in ("yaw", "pitch", "roll") for what in ("", "extreme_")} | {"eye_activity": 0.1}
_PAIR = {"black_frames": 0.0, "clipped_frames": 0.0, "lost_frames": 0.0, "pose_error_deg": 1.0, "centre_offset": 0.0, "size_ratio": 1.0}
_PAIR |= {"mouth_correlation": 0.9, "eye_correlation": 0.9} | {f"{a}_extreme_deg": 5.0 for a in ("yaw", "pitch", "roll")}


def ingest(source: SourceFile, out: Outputs) -> tuple[dict[str, Any], list[Shot]]:
    content = digest(source.uri)
    shot = Shot(
        id=shot_id(source.id, content, 0, 49),
        source=source,
        content=content,
        first_frame=0,
        last_frame=49,
        folder=out.folder,
        has_sound=False,
    )
    out.write("timing.npz", b"t")
    data = {"content": content, "frames": 50, "fps": 25.0, "width": 64, "height": 64, "duration_s": 2.0, "has_audio": False}
    return data, [shot]


def faces(shot: Shot, out: Outputs) -> tuple[dict[str, Any], list[Clip]]:
    name = clip_id(shot.content, 0, 49, 0)
    for file in ("target.mp4", "source.png", "track.npz"):
        out.write(f"{name}.{file}", f"{name} {file}".encode())
    clip = Clip(
        id=name, shot=shot.id, source=shot.source, content=shot.content, track=0, first_frame=0, last_frame=49, source_fps=25.0,
        frames=50, fps=25, size_px=64, crop=(0, 0, 64), still_frame=0, has_audio=False, folder=out.folder, digests=dict(out.digests),
        scores=_FACE, still_scores=_FACE,
    )  # fmt: skip
    return {}, [clip]


def motion(performance: Performance, out: Outputs) -> tuple[dict[str, Any], list[Pair]]:
    clip = performance.clip
    out.write("motion.npz", clip.id.encode())
    pairs = [Pair(id=pair_id(clip.id, p.id), clip=clip, portrait=p, motion_folder=out.folder) for p in performance.portraits]
    return {"frames": clip.frames}, pairs


def reenact(pair: Pair, out: Outputs) -> tuple[dict[str, Any], list[Driving]]:
    out.write("driving.mp4", pair.id.encode())
    made = Driving(
        id=pair.id, pair=pair, folder=out.folder, digests=dict(out.digests), generator="none", generator_version=1, fingerprint=""
    )
    return {"frames": pair.clip.frames}, [made]


def regions(driving: Driving, out: Outputs) -> tuple[dict[str, Any], list[str]]:
    for file in ("regions.npz", "controls.npz"):
        out.write(file, f"{driving.id} {file}".encode())
    return _PAIR, []


STAGES: dict[str, Callable[..., Any]] = {"ingest": ingest, "faces": faces, "motion": motion, "reenact": reenact, "regions": regions}


def in_this_process(
    rows: Sequence[dict[str, str]], chain: Sequence[tuple[str, ...]], root: Store, config: RunConfig, progress: Progress
) -> Counter[tuple[str, str]]:
    """As pipeline.executor.run_graph, without Ray."""
    for names in chain:
        batch = pa.Table.from_pylist(list(rows), schema=ROW)
        rows = [r for r in StageWorker(str(root), config, names, "s")(batch).to_pylist() if r["stage"] != OUTCOME]
    return Counter()


class Nobody:
    """A watcher that looks away."""

    def step(self, name: str, units: int) -> None: ...
    def unit(self, stage: str, outcome: str, reason: str) -> None: ...
    def say(self, text: str) -> None: ...


def main() -> int:
    worker.build_stage = lambda name, config: STAGES[name]  # type: ignore[assignment]
    run_module.run_graph = in_this_process  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "clips").mkdir()
        for n in range(SOURCES):
            (base / "clips" / f"{n:05d}.mp4").write_bytes(b"x")
        config = RunConfig(run="run", clips="clips")
        flush, os.fsync = os.fsync, lambda fd: None  # the run that is measured writes next to nothing; this one, 20,000 files
        first = seconds(lambda: run_module.run(config, base=base, watcher=Nobody()))
        os.fsync = flush
        again = [seconds(lambda: run_module.run(config, base=base, watcher=Nobody())) for _ in range(REPEATS)]
        asked = [seconds(lambda: status(base / "run")) for _ in range(REPEATS)]
        counts = status(base / "run")["stages"]
    units = sum(c["done"] for name, c in counts.items() if name in STAGES)
    left = sum(c["left"] for c in counts.values())
    print(f"{units} units, first run {first:.1f} s; seconds, min / median / max of {REPEATS}:")
    print(f"  run again, nothing to do  {min(again):.2f} / {median(again):.2f} / {max(again):.2f}   (at most {RUN_S:.0f})")
    print(f"  status                    {min(asked):.2f} / {median(asked):.2f} / {max(asked):.2f}   (at most {STATUS_S:.0f})")
    return units < 10_000 or left > 0 or median(again) > RUN_S or median(asked) > STATUS_S


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
