"""The kill campaign: SIGKILLs a run's driver, workers and raylet at random moments, resumes it to its end, and asks for the same bytes.

    python -m campaigns.kills --kills 100 --seed 0

Each run begins in a fresh folder, by turns streaming, staged, and streaming in an S3 bucket whose server fails every twentieth request,
and is killed and resumed until it ends by itself. A killed worker
leaves the run going on. After the driver or the raylet was killed, what is left of that Ray is killed too, as an operator or the
system would do, and the same command is started again. A unit run alone is killed less often than `limits.attempts`: a unit that
dies as often as that, alone, is quarantined by design.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import av
import cv2
import matplotlib
import numpy as np
import psutil
import skimage.data
import yaml

from pipeline import tables
from pipeline.ledger import STAGES, Ledger
from pipeline.storage import read_run_file
from pipeline.verify import diff, verify
from schemas.outcomes import Outcome
from schemas.store import DiskStore, Place, Store, open_store
from tests.s3server import S3Server

MODES = ("streaming", "staged", "in S3")
WEATHER = {"internal_error": 0.01, "slow_down": 0.01, "truncate": 0.01, "lost_request": 0.01, "lost_answer": 0.01}
VICTIMS = ("worker", "worker", "worker", "driver", "raylet")  # drawn from; most deaths in the field are a worker's
ATTEMPTS = 2  # limits.attempts
PATIENCE_S = 5.0  # for what should go by itself, before it counts as left behind
POLL_S = 0.03
CLIPS = {"astronaut": 32, "hopper": 36, "mirrored": 40}  # name -> frames

_FACES = {"astronaut": (224.0, 122.0, 120.0), "hopper": (262.0, 210.0, 240.0)}  # centre x, y and height in the photograph
_SIDE, _FACE_PX, _FPS, _SOUND_HZ = 320, 120.0, 25, 16_000
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_COMMAND = (sys.executable, "-c", "from pipeline.cli import main; main()", "run")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL. `seconds`: after the start of the command that it hit; `left`: processes that had to be killed after it."""

    run: int
    what: str
    seconds: float
    mode: str
    left: int = 0


@dataclass
class Report:
    """What was done, and every way in which a run that was killed differs from one that was not."""

    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    units: int = 0  # unit x stage of one run
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = Counter(k.what for k in self.kills)
        counts = ", ".join(f"{n} of a {name}" for name, n in sorted(what.items()))
        ending = f"{len(self.violations)} violations" if self.violations else "every run ended as the undisturbed one did, byte for byte"
        return f"{len(self.kills)} kills ({counts}) in {self.runs} runs of {self.units} units x stages: {ending}"


def campaign(kills: int, seed: int, say: Say = print) -> Report:
    """Kills until there were `kills` of them, and brings the last run to its end too. The seed settles what is drawn;
    what a kill hits in the end depends on the machine's pace too."""
    report, random = Report(), Random(seed)
    # A short path: Ray's sockets are in it, and the name of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, _object_store() as s3:
        base = Path(folder)
        write_corpus(base)
        started = time.monotonic()
        reference = Session(base, "reference", MODES[0], DiskStore(base / "reference"))
        try:
            code = reference.process.wait(timeout=900)
        finally:
            reference.end()
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {reference.said()}")
        seconds = time.monotonic() - started
        report.units = len(tables.load(reference.root, "outcomes"))
        say(f"undisturbed: {report.units} units x stages in {seconds:.1f} s")
        while len(report.kills) < kills and len(report.violations) < 20:
            mode, name = MODES[report.runs % len(MODES)], f"run{report.runs}"
            root = open_store(f"s3://campaign/{name}") if mode == "in S3" else DiskStore(base / name)
            if mode == "in S3":
                s3.faults(WEATHER, seed=seed + report.runs)
            found = _one_run(base, root, report, random, seconds, mode, kills, say)
            s3.faults({})
            found += compare(reference.root, root)  # of a run that ended badly too: what it cost is worth knowing
            report.violations += [f"run {report.runs} ({mode}): {v}" for v in found]
            for violation in found:
                say(f"violated in run {report.runs} ({mode}): {violation}")
            report.runs += 1
    say(str(report))
    return report


@contextmanager
def _object_store() -> Iterator[S3Server]:
    """A server whose place is in the environment, for this process and for those that it starts."""
    s3, before = S3Server(), dict(os.environ)
    os.environ.update(s3.environment())
    try:
        s3.start()
        s3.make_bucket("campaign")
        yield s3
    finally:
        s3.stop()
        os.environ.clear()
        os.environ.update(before)


def _one_run(base: Path, root: Store, report: Report, random: Random, seconds: float, mode: str, kills: int, say: Say) -> list[str]:
    """Kills and resumes one run until it ends by itself; what was wrong on the way."""
    paths = len(_traces(DiskStore(base / "reference")))
    while True:
        session = Session(base, f"run{report.runs}", mode, root)
        try:
            killed, alone_killed, lethal = False, 0, False
            while len(report.kills) < kills and not lethal:
                part = 1 / 4 if killed else 1  # the next worker soon after the first: a unit may lose two
                if random.random() < 0.5:
                    ended = session.wait(random.uniform(0, seconds * part))
                else:  # a moment at which something happens, in the ledger or in the shards
                    n = random.randint(1, round(paths * part))
                    ended = session.wait_for_traces(n) or session.wait(random.uniform(0, 0.3))
                if ended:
                    break
                victim = random.choice(VICTIMS)
                what, process = session.victim(victim, random, spare_alone=alone_killed >= ATTEMPTS - 1)
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
                killed, lethal = True, what in ("driver", "raylet")
                alone_killed += what == "alone worker"
                after = time.monotonic() - session.started
                if lethal:  # the others live on for a moment, and may do harm
                    time.sleep(random.uniform(0, PATIENCE_S))
                left = session.end() if lethal else 0
                report.kills.append(Kill(report.runs, what, round(after, 1), mode, left))
                more = f", {left} processes were left and killed too" if left else ""
                say(f"kill {len(report.kills)}: {what} after {after:.1f} s, run {report.runs}, {mode}{more}")
            if lethal:
                continue
            try:
                code = session.process.wait(timeout=180 + 10 * seconds)
            except subprocess.TimeoutExpired:
                return [f"hung {'after a kill of a worker' if killed else 'undisturbed'}: {session.said()}"]
            if code:
                return [f"ended with {code} {'after a kill of a worker' if killed else 'undisturbed'}: {session.said()}"]
            behind = session.left_behind()
            return [f"left behind: {', '.join(behind)}"] if behind else []
        finally:
            session.end()


class Session:
    """One `crosspair run` in a session of its own, and every process that came of it."""

    def __init__(self, base: Path, name: str, mode: str, root: Store) -> None:
        self.root, self._log = root, base / f"{name}.log"
        config = base / f"{name}.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "run": str(root),
                    "clips": ["clips.csv"],
                    "portraits": ["images"],
                    "video": {"size_px": 128},
                    "reenactor": {"meshwarp": {"calibration_rounds": 0}},  # half the work; how true pairs are is not asked here
                    "shards": {"max_mb": 1},
                    "limits": {"attempts": ATTEMPTS},
                    "ray": {"workers": 2, "mode": "staged" if mode == "staged" else "streaming"},
                }
            )
        )
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_TMPDIR": str(base)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, str(config)], stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self.started = time.monotonic()
        self._driver = psutil.Process(self.process.pid)
        self._seen: dict[int, psutil.Process] = {}
        self._traces = _traces(self.root)

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by itself within `seconds`."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_for_traces(self, n: int) -> bool:
        """Waits until `n` paths have appeared in ledger and shards; whether it ended before that."""
        appeared = 0
        while appeared < n:
            if self.process.poll() is not None:
                return True
            now = _traces(self.root)
            appeared += len(now - self._traces)
            self._traces |= now
            time.sleep(POLL_S)
        return False

    def victim(self, wanted: str, random: Random, *, spare_alone: bool) -> tuple[str, psutil.Process]:
        """What there is of the kind that is wanted; before there is any, the driver."""
        # Ray's agents call themselves as workers do, and are none: a raylet ends when one of them does.
        names = [(p, line) for p in self._alive() if not (line := _command_line(p)).startswith(_AGENTS)]
        if wanted == "worker":
            workers = [(p, line) for p, line in names if line.startswith("ray::")]
            if spare_alone:
                workers = [(p, line) for p, line in workers if "run_alone" not in line]
            # Mostly those with a unit in hand.
            stages = [w for w in workers if any(part in w[1] for part in ("MapWorker", "StageWorker", "run_alone"))]
            if found := stages if stages and random.random() < 0.9 else workers:
                process, line = random.choice(found)
                return ("alone worker" if "run_alone" in line else "worker"), process
        if wanted == "raylet" and (raylets := [p for p, line in names if Path(line.split(" ")[0]).name == "raylet"]):
            return "raylet", raylets[0]
        return "driver", self._driver

    def left_behind(self) -> list[str]:
        """Command lines of what is alive some seconds after the command has ended."""
        until = time.monotonic() + 2 * PATIENCE_S
        while (alive := self._alive()) and time.monotonic() < until:
            time.sleep(0.1)
        return [_command_line(p) for p in alive]

    def end(self) -> int:
        """Kills whatever is left; how many processes that were."""
        left: dict[int, psutil.Process] = {}
        while alive := self._alive():  # a raylet starts workers until it is dead
            for process in alive:
                left[process.pid] = process
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(alive, timeout=1)
        self.process.wait()
        return len(left)

    def _alive(self) -> list[psutil.Process]:
        """Everything in the driver's session, and all that ever descended from it as far as it was seen."""
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid:
                    self._seen[process.pid] = process
            except OSError:
                continue
        for parent in list(self._seen.values()):
            try:
                self._seen |= {p.pid: p for p in parent.children(recursive=True)}
            except psutil.Error:
                continue
        self._seen = {pid: p for pid, p in self._seen.items() if _lives(p)}
        return list(self._seen.values())


def _lives(process: psutil.Process) -> bool:
    """A zombie has ended, though nobody has asked how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


def _traces(root: Store) -> set[str]:
    """Files by which a run shows how far it is."""
    found: set[str] = set()
    for prefix in ("ledger/", "artifacts/", "tables/", "shards/"):
        with suppress(FileNotFoundError):  # a folder that went while it was listed
            found |= set(root.names(prefix))
    return found


def compare(reference: Place, place: Place) -> list[str]:
    """Every way in which a finished run differs from the reference over the same corpus, a sentence each; empty when nothing was lost,
    nothing was done twice, nothing was blamed, every byte is the same and nothing is left over."""
    before, root = open_store(reference), open_store(place)
    try:
        found = [*verify(root), *diff(before, root)]
    except ValueError as e:
        return [str(e)]
    tars, other = _tars(before), _tars(root)
    names = sorted(tars.keys() | other.keys())
    found += [f"{name}: other bytes than in the reference" for name in names if tars.get(name) != other.get(name)]
    return [*found, *_units_apart(before, root), *_left_over(before, root)]


def _units_apart(reference: Store, root: Store) -> Iterator[str]:
    """One winning record per unit and stage, with the outcome that it has in the reference; as many rows in the table of outcomes."""
    before, after = _winners(reference), _winners(root)
    for key in sorted(before.keys() | after.keys()):
        name = f"{key[0]} of {key[1]}"
        if key not in after:
            yield f"{name}: lost"
        elif key not in before:
            yield f"{name}: not in the reference"
        elif (now := after[key]["outcome"]) != before[key]["outcome"] or after[key]["reason"] != before[key]["reason"]:
            yield f"{name}: {now} ({after[key]['reason']}: {after[key]['message']}), in the reference {before[key]['outcome']}"
    expected, rows = _rows(reference), _rows(root)
    yield from (f"tables: {n} x {' '.join(row)} too few" for row, n in (expected - rows).items())
    yield from (f"tables: {n} x {' '.join(row)} too many" for row, n in (rows - expected).items())
    yield from (f"tables: {row[1]} is quarantined" for row in rows if row[2] == Outcome.QUARANTINED)


def _winners(root: Store) -> dict[tuple[str, str], dict[str, Any]]:
    prints = read_run_file(root)["fingerprints"]
    return {(stage, unit): asdict(r) for stage in STAGES for unit, r in Ledger(root).read(stage, prints[stage]).items()}


def _tars(root: Store) -> dict[str, str]:
    return {name: root.digest(name) for name in root.names("shards/", ".tar")}


def _rows(root: Store) -> Counter[tuple[str, str, str, str]]:
    return Counter((r["stage"], r["unit"], r["outcome"], r["reason"]) for r in tables.load(root, "outcomes"))


def _left_over(reference: Store, root: Store) -> Iterator[str]:
    """Temporary files, artifacts that no record names, and whatever else a finished run does not hold."""
    named = {r["folder"] for r in _winners(root).values()}
    yield from (f"{root.at(folder)}: no record names it" for folder in root.folders("artifacts", depth=4) if folder not in named)
    if isinstance(root, DiskStore):
        yield from (f"{p}: a temporary file" for p in sorted(root.root.rglob("*")) if ".tmp-" in p.name)
    elif root.size(".lock") >= 0:
        yield f"{root.at('.lock')}: nobody holds it"
    yield from (f"{root.at(name)}: left over" for name in sorted(_top(root) - _top(reference)))
    for path in Path(tempfile.gettempdir()).glob("crosspair-*"):  # files on their way to or from an object store
        if not psutil.pid_exists(int(path.name.split("-")[2])):
            yield f"{path}: left over"


def _top(root: Store) -> set[str]:
    """What there is at a run's first level."""
    if isinstance(root, DiskStore):
        return {p.name for p in root.root.iterdir() if ".tmp-" not in p.name}
    return {name.split("/")[0] for name in root.names("")} | {".lock"}


def write_corpus(base: Path) -> None:
    """Three short clips of faces with a tone, an image, and a manifest that says who is who."""
    (base / "clips").mkdir()
    (base / "images").mkdir()
    for name, frames in CLIPS.items():
        _write_clip(base / "clips" / f"{name}.mp4", name, frames)
    cv2.imwrite(str(base / "images" / "hopper.png"), cv2.cvtColor(_photograph("hopper"), cv2.COLOR_RGB2BGR))
    with (base / "clips.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["uri", "identity", "licence", "consent"])
        writer.writerows([f"clips/{name}.mp4", name, "public domain", "not needed"] for name in CLIPS)


def _photograph(who: str) -> np.ndarray:
    """uint8 RGB (H, W, 3), in the public domain."""
    if who == "astronaut":
        return np.asarray(skimage.data.astronaut())
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))


def _write_clip(path: Path, name: str, frames: int) -> None:
    who = "astronaut" if name == "mirrored" else name
    cx, cy, height = _FACES[who]
    photograph = _photograph(who)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast", "crf": "14"})
        video.width = video.height = _SIDE
        video.pix_fmt, video.codec_context.thread_count = "yuv420p", 1
        audio = out.add_stream("aac", rate=_SOUND_HZ, layout="mono")
        for k in range(frames):
            phase = 2 * np.pi * k / 40
            matrix = cv2.getRotationMatrix2D((cx, cy), 6 * np.sin(phase), _FACE_PX / height * (1 + 0.06 * np.sin(phase)))
            matrix[:, 2] += np.array([_SIDE / 2 + 10 * np.sin(phase), _SIDE / 2 + 6 * np.cos(phase)]) - (cx, cy)
            picture = cv2.warpAffine(photograph, matrix, (_SIDE, _SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
            picture = picture[:, ::-1].copy() if name == "mirrored" else picture
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
        tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(frames * _SOUND_HZ // _FPS) / _SOUND_HZ)).astype(np.int16)
        for first in range(0, len(tone), 1024):
            part = av.AudioFrame.from_ndarray(tone[None, first : first + 1024], format="s16", layout="mono")
            part.sample_rate, part.pts, part.time_base = _SOUND_HZ, first, Fraction(1, _SOUND_HZ)
            out.mux(audio.encode(part))
        out.mux(audio.encode(None))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="writes the report there too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing of ours outlives us then either
    report = campaign(options.kills, options.seed, partial(print, flush=True))
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1))
    return int(bool(report.violations))


if __name__ == "__main__":
    sys.exit(main())
