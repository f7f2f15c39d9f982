"""Mutated clips: bit flips, truncations, foreign headers, holes and shuffled blocks, all fed to one run that has to bear them."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from campaigns.hostile import Trap, make_hostile, make_hostile_images
from pipeline import tables
from pipeline.config import RunConfig, fingerprints
from pipeline.ledger import Ledger
from pipeline.run import run
from pipeline.sources import CLIP_SUFFIXES
from schemas.config import parse_config
from schemas.ids import file_digest
from schemas.outcomes import REASONS, Outcome

_MAX_BYTES = 2 << 20  # of a mutant: the container's index and the first frames are where it hurts
_BLOCK = 4096
_PREPARE = ("ingest", "faces", "portraits")
_CONFIG = {
    "run": "run",
    "clips": ["clips"],
    "portraits": ["images"],
    "video": {"size_px": 64},
    "ingest": {"max_frames": 400, "max_frame_pixels": 4_000_000},
    "faces": {"survey_every": 10},
    "limits": {"unit_s": 60.0, "memory_gb": 2.0},
    "ray": {"workers": 2},
}


@dataclass
class Report:
    """What became of the files of a campaign, and each promise that was broken, in a sentence that names the file."""

    mutants: int = 0
    seconds: float = 0.0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def campaign(count: int, seed: int, clips: list[Path], say: Callable[[str], None]) -> Report:
    """Feeds `count` mutants of `clips`, and all hostile files, to one run with two workers, up to the end of `prepare`.

    The run works in a folder of its own below the system's temporary one, which goes when the campaign ends. It starts a Ray of its
    own, so that whatever is left of it afterwards was left by it.
    """
    began = time.monotonic()
    report = Report(mutants=count)
    base = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        (base / "clips").mkdir()
        make_mutants(clips, base / "clips", count, random.Random(seed))
        say(f"{count} mutants of {len(clips)} clips, seed {seed}")
        with Trap(base / "kept") as trap, temporaries_in(base / "tmp") as left:
            make_hostile(base / "clips" / "hostile", trap)
            make_hostile_images(base / "images")
            files = sorted(p for folder in ("clips", "images") for p in (base / folder).rglob("*") if not p.is_dir())
            before = {p: _state(p) for p in files}
            try:
                run(parse_config(RunConfig, _CONFIG), base=base, watcher=_Quiet(say), until="prepare")
            except Exception as e:  # whatever ended it, files are left without an outcome
                report.violations.append(f"the run stopped: {type(e).__name__}: {e}")
            report.violations += left()
            report.violations += [f"{what}: was read from outside of the input" for what in trap.sprung()]
        report.violations += [f"{p}: was changed or taken away" for p, state in before.items() if _state(p) != state]
        listed = [p for p in files if p.suffix.lower() in CLIP_SUFFIXES or p.parent.name == "images"]
        report.violations += check_outcomes(base / "run", listed)
        report.violations += check_folder(base / "run", parse_config(RunConfig, _CONFIG))
        for r in tables.load(base / "run", "sources"):
            report.outcomes[r["outcome"], r["reason"]] += 1
    finally:
        shutil.rmtree(base, ignore_errors=True)
    report.seconds = time.monotonic() - began
    return report


class _Quiet:
    """A watcher that tells of warnings only."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def step(self, name: str, units: int) -> None:
        self.say(f"{name}: {units} units")

    def unit(self, stage: str, outcome: str, reason: str) -> None:
        pass


# --- mutations


def make_mutants(clips: Sequence[Path], folder: Path, count: int, rng: random.Random) -> list[Path]:
    """Writes `count` mutants, in rounds over every mutation of every clip. A name tells how its file was made."""
    bodies = [clip.read_bytes()[:_MAX_BYTES] for clip in clips]
    kinds = [(which, mutation) for which in range(len(clips)) for mutation in _MUTATIONS]
    rng.shuffle(kinds)  # so that a short campaign has some of each
    made = []
    for k in range(count):
        which, (name, mutate) = kinds[k % len(kinds)]
        data = mutate(bodies[which], bodies[rng.randrange(len(bodies))], rng)
        made.append(folder / f"{k:04d} {name} {clips[which].name}")
        made[-1].write_bytes(data)
    return made


def flip_bits(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One flip in about 10 kB anywhere, at least one, and sometimes some in the head, where sizes and counts stand."""
    mutant = bytearray(data)
    places = [rng.randrange(len(data)) for _ in range(1 + len(data) // 10_000)]
    places += [rng.randrange(min(len(data), 4096)) for _ in range(rng.choice((0, 3, 30)))]
    for place in places:
        mutant[place] ^= 1 << rng.randrange(8)
    return bytes(mutant)


def truncate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """As much left as of a broken download; nothing at all, at times."""
    return data[: rng.choice((0, rng.randrange(64), rng.randrange(len(data)), rng.randrange(len(data))))]


def splice_header(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The head of one file on the body of another."""
    head = rng.choice((16, 512, 4096, 65536, len(other) // 2))
    return other[:head] + data[rng.choice((head, 0)) :]


def zero_spans(data: bytes, other: bytes, rng: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(data))
        length = min(rng.randint(1, 20_000), len(data) - at)
        mutant[at : at + length] = bytes(length)
    return bytes(mutant)


def shuffle_blocks(data: bytes, other: bytes, rng: random.Random) -> bytes:
    blocks = [data[i : i + _BLOCK] for i in range(0, len(data), _BLOCK)]
    for _ in range(rng.randint(1, 6)):
        a, b = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        blocks[a], blocks[b] = blocks[b], blocks[a]
    return b"".join(blocks)


def wrong_numbers(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Four bytes here and there become the numbers that overflow."""
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(max(1, min(len(data), rng.choice((512, 4096, len(data)))) - 4))
        mutant[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\0\0\0\1"))
    return bytes(mutant[: len(data)])


_MUTATIONS: tuple[tuple[str, Callable[[bytes, bytes, random.Random], bytes]], ...] = (
    ("flips", flip_bits),
    ("truncated", truncate),
    ("spliced", splice_header),
    ("zeroed", zero_spans),
    ("shuffled", shuffle_blocks),
    ("numbers", wrong_numbers),
)


# --- what must hold


def check_outcomes(root: Path, listed: Sequence[Path]) -> list[str]:
    """Every listed file has one outcome, for a reason there is; no unit, of a file or of a part of it, ended by an error of ours."""
    problems = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for r in tables.load(root, "sources"):
        rows.setdefault(r["uri"], []).append(r)
    for path in listed:
        uri = os.fsencode(path).decode("utf-8", "backslashreplace")
        found = rows.pop(uri, [])
        if len(found) != 1:
            problems.append(f"{uri}: has {len(found)} rows among the sources, not 1")
        problems += [f"{uri}: {fault}" for r in found if (fault := _fault(r))]
    problems += [f"{uri}: was never listed" for uri in rows]
    units: Counter[tuple[str, str]] = Counter()
    for r in tables.load(root, "outcomes"):
        units[r["stage"], r["unit"]] += 1
        if fault := _fault(r):
            problems.append(f"{r['source_uri']}: {r['stage']} of {r['unit']}: {fault}: {r['message']}")
    return problems + [f"{unit}: has {n} outcomes in {stage}" for (stage, unit), n in units.items() if n != 1]


def _fault(r: dict[str, Any]) -> str:
    """What is wrong with an outcome; empty when nothing is."""
    if r["outcome"] not in set(Outcome):
        return f"its outcome is {r['outcome']!r}"
    if (r["reason"] == "") != (r["outcome"] == Outcome.DONE):
        return f"{r['outcome']} for the reason {r['reason']!r}"
    if r["reason"] and r["reason"] not in REASONS:
        return f"nobody knows the reason {r['reason']!r}"
    return "ended by an unexpected error" if r["reason"] == "error" else ""


def check_folder(root: Path, config: RunConfig) -> list[str]:
    """No temporary file, no open attempt, no artifact that no record names."""
    problems = [f"{p}: a temporary file is left" for p in root.rglob("*") if ".tmp-" in p.name]
    problems += [f"{p}: an attempt is still open" for p in root.glob("ledger/*/open/*")]
    prints, named = fingerprints(config), set()
    for stage in _PREPARE:
        for record in Ledger(root).read(stage, prints[stage]).values():
            named |= {f"{record.folder}/{name}" for name in record.digests}
    files = (str(p.relative_to(root)) for p in (root / "artifacts").rglob("*") if p.is_file())
    return problems + [f"{root / name}: no record names this file" for name in files if name not in named]


def _state(path: Path) -> tuple[str, ...]:
    """What must not change of a source file."""
    if path.is_symlink():
        return ("link", str(path.readlink()))
    if not path.is_file():
        return ("no file", str(path.exists()))
    return (file_digest(path), str(path.stat().st_mtime_ns))


@contextmanager
def temporaries_in(folder: Path, patience_s: float = 20.0) -> Iterator[Callable[[], list[str]]]:
    """Temporary files of all processes started meanwhile go to `folder`; the function given tells of files and processes left.

    Every descendant inherits the variable that names the folder, by which it is known even after its parent has gone.
    """
    folder.mkdir()
    saved = {name: os.environ.get(name) for name in ("TMPDIR", "RAY_TMPDIR")}
    os.environ["RAY_TMPDIR"] = tempfile.gettempdir()  # Ray keeps its logs, and paths of its sockets must be short
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)

    def left() -> list[str]:
        until = time.monotonic() + patience_s
        while (alive := processes_with(f"TMPDIR={folder}")) and time.monotonic() < until:
            time.sleep(0.2)
        return [f"process {who} is left" for who in alive] + [f"{p}: a temporary file is left" for p in folder.rglob("*")]

    try:
        yield left
    finally:
        tempfile.tempdir = None
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def processes_with(variable: str) -> list[str]:
    """Number and name of living processes, other than this one, that were started with `variable` (NAME=value)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(f"{folder.name} ({(folder / 'comm').read_text().strip()})")
        except OSError:  # it has gone meanwhile, or is another user's
            continue
    return found


# --- clips to mutate


def find_clips(folder: Path) -> list[Path]:
    """Clips made here below `folder`, in every container, and the real clips below CROSSPAIR_SHARED where that is set."""
    shared = os.environ.get("CROSSPAIR_SHARED")
    real = (Path(shared) / "realdata" / "clips").iterdir() if shared else ()
    return make_clips(folder) + sorted(p for p in real if p.suffix.lower() in CLIP_SUFFIXES)


def make_clips(folder: Path, frames: int = 40) -> list[Path]:
    """A photographed face that sways, with a tone, in the containers and codecs that people have."""
    import imageio_ffmpeg
    import skimage.data

    from pipeline.demo_clips import SOUND_HZ, FootageWriter

    folder.mkdir(parents=True, exist_ok=True)
    photograph = np.asarray(skimage.data.astronaut())
    plain = folder / "plain.mp4"
    with FootageWriter(plain, (256, 256), 25) as writer:
        for k in range(frames):
            shift = np.array([[1, 0, 8 * np.sin(k / 6) - 96], [0, 1, 5 * np.cos(k / 6)]], np.float32)
            writer.write(cv2.warpAffine(photograph, shift, (256, 256), borderMode=cv2.BORDER_REPLICATE))
        writer.write_sound((8000 * np.sin(2 * np.pi * 440 * np.arange(frames * SOUND_HZ // 25) / SOUND_HZ)).astype(np.int16))
    others = {
        "index first.mp4": "-c copy -movflags +faststart",
        "fragments.mp4": "-c copy -movflags frag_keyframe+empty_moov",
        "plain.mkv": "-c copy",
        "plain.ts": "-c copy",
        "plain.flv": "-c copy",
        "plain.h264": "-c:v copy -an",
        "plain.avi": "-c:v mpeg4 -c:a libmp3lame",
        "plain.mpg": "-c:v mpeg2video -c:a mp2",
        "plain.ogv": "-c:v libtheora -c:a libvorbis",
        "plain.webm": "-c:v libvpx -c:a libvorbis -cpu-used 8 -deadline realtime",
    }
    for name, options in others.items():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", "-i", str(plain), *options.split()]
        subprocess.run([*command, str(folder / name)], check=True)
    return [plain, *(folder / name for name in others)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clips-") as folder:
        report = campaign(options.count, options.seed, find_clips(Path(folder)), say=lambda text: print(text, flush=True))
    for (outcome, reason), number in sorted(report.outcomes.items(), key=lambda item: -item[1]):
        print(f"{number:6d}  {outcome:12s} {reason}")
    for violation in report.violations:
        print(f"VIOLATION  {violation!r}")
    print(f"{sum(report.outcomes.values())} files in {report.seconds:.0f} s, {len(report.violations)} promises broken")
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
