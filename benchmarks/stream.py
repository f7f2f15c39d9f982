"""Reading shards beside other loaders: ours, webdataset, LitData and Megatron-Energon on the same samples.

    [CROSSPAIR_SHARED=<folder that holds realdata/>] python -m benchmarks.stream [--repeats 5] [--samples 512] [--envs DIR] [library ...]

Each library runs in an environment of its own, built by pip on first use and kept (ours in this one), and in a fresh process for each
measurement; the libraries take turns, so that a slow minute of the machine is everyone's. All read the same samples: ours, webdataset
and Energon the same tars, LitData its own chunks of them. The page cache is warm: this measures loaders, not a disk. All shuffle, each in
its own way: ours over the whole set, LitData over chunks and within them, webdataset and Energon over shards and a buffer of 100.

Without decode: an epoch of all members as bytes in batches of 4. Ours holds all bytes against their checksums, as by default; `digests` and
`headers` are ours with that `StreamConfig.check`: bytes held against digests, or trusted, as the others trust them.
With decode: a source frame, 19 target frames and 16 masked driving frames of each sample, by the same calls on the same versions of PyAV
and OpenCV; before anything is timed all libraries must give the same pixels. Threads: nothing beside the process, then two (ours: threads;
theirs: two DataLoader processes, which hand pictures over in shared memory). The rate is of what comes after the first batch.

Kill and resize: two ranks read some steps, save what their library's documentation says to save, read on, and are killed. Three ranks go
on from it to the end of the epoch. A sample read twice (what was undone by the death does not count) is a duplicate, one never read a
miss. Where a library refuses, its words are shown, and the epoch begins anew. Energon documents one way
(`checkpoint redist`) if ranks times workers stay the same: two ranks of three workers become three of two.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.stream_envs import ENVS, NoRegistry, environment, python_of
from benchmarks.stream_readers import BUFFER, FRAMES, HISTORY
from benchmarks.stream_samples import write_samples
from model.stream import ShardStream, StreamConfig
from schemas.sample import read_index

LIBRARIES = ("ours", "webdataset", "litdata", "energon")
CHECKS = ("digests", "headers")  # ours, with another `check`
REPEATS, SAMPLES, DECODED, SIZE_PX, CLIP_FRAMES, TARS, BATCH, COMPARED = 5, 512, 96, 576, 40, 12, 4, 6
STOPS = (25, 26, 27)  # steps of two ranks: about 40 % of an epoch of 512; those of three need not divide them
_Job = dict[str, Any]


class Bench:
    """Where the samples are, and how a library's process is started."""

    def __init__(self, folder: Path, libraries: Sequence[str], envs: Path) -> None:
        self.folder, self.libraries = folder, libraries
        self.tars, self.prepared, self.chunks = folder / "tars", folder / "prepared", folder / "chunks"
        self.pythons = {library: python_of(library, envs) for library in libraries}

    def make_samples(self, samples: int, size_px: int) -> None:
        write_samples(self.tars, samples=samples, size_px=size_px, frames=CLIP_FRAMES, tars=TARS)
        if "litdata" in self.libraries:
            self.ask("litdata", task="write")
        if "energon" in self.libraries:
            self.prepared.mkdir()
            for tar in self.tars.glob("*.tar"):
                os.link(tar, self.prepared / tar.name)
            self.energon("prepare", self.prepared, "--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset")

    def energon(self, *command: str | Path) -> None:
        whole = [str(self.pythons["energon"]), "-m", "megatron.energon.cli.main", *map(str, command)]
        subprocess.run(whole, env=environment(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, library: str, **job: Any) -> subprocess.Popen[str]:
        places = {"tars": str(self.tars), "prepared": str(self.prepared), "chunks": str(self.chunks), "batch": BATCH}
        text = json.dumps({"library": library, **places, **job})
        command = [str(self.pythons["ours" if library in CHECKS else library]), "-m", "benchmarks.stream_worker", text]
        log = (self.folder / "worker.log").open("a")
        # theirs keep files in the home folder
        env = environment(HOME=str(self.folder))
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)

    def ask(self, library: str, **job: Any) -> Any:
        return self.answer(self.start(library, **job), library, killed=job["task"] == "stop")

    def answer(self, process: subprocess.Popen[str], library: str, *, killed: bool = False) -> Any:
        if killed:
            process.wait(timeout=900)
            _end_session(process.pid)
        out, _ = process.communicate(timeout=900)
        lines = [line for line in out.splitlines() if line.strip()]
        if process.returncode != (-signal.SIGKILL if killed else 0) or not lines:
            raise RuntimeError(f"{library}: exit {process.returncode}; {_tail(self.folder / 'worker.log')}")
        return json.loads(lines[-1])


def _end_session(leader: int) -> None:
    """What a killed process leaves behind: DataLoader processes of the session that it began, which keep its output open."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _tail(path: Path) -> str:
    return "\n".join(path.read_text().splitlines()[-15:])


def check_pixels(bench: Bench) -> int:
    """How many samples were compared. Raises AssertionError when two libraries give other pictures."""
    stream = ShardStream(bench.tars, StreamConfig(frames=FRAMES, history=HISTORY))
    keys = [stream.key(p) for p in range(COMPARED)]
    # The others' pictures are made by one function: only the samples compared need be decoded.
    found = {library: bench.ask(library, task="pixels", decode=library == "ours", keys=keys) for library in bench.libraries}
    assert all(f == found["ours"] and len(f) == len(keys) for f in found.values()), found
    return len(keys)


def rates(bench: Bench, repeats: int, *, decode: bool, workers: int, samples: int) -> dict[str, list[dict[str, float]]]:
    """Of each library, round by round; by turns, each round in another order."""
    names = [*bench.libraries, *(() if decode else CHECKS)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for n in range(repeats):
        for name in (*names[n % len(names) :], *names[: n % len(names)]):
            found[name].append(bench.ask(name, task="rate", decode=decode, workers=workers, samples=samples))
    return found


def table(found: Mapping[str, list[dict[str, float]]]) -> None:
    columns = (("samples_per_s", "samples/s", 1), ("cpu_ms_per_sample", "CPU ms a sample", 2), ("first_batch_s", "first batch s", 3))
    print(f"| | {' | '.join(title for _, title, _ in columns)} | peak MB (imports) | ours / its, by round |")
    print("|---|" + "---|" * (len(columns) + 2))
    for name, rounds in found.items():
        cells = [_spread([r[key] for r in rounds], digits) for key, _, digits in columns]
        memory = f"{max(r['peak_mb'] for r in rounds):.0f} ({median(r['imported_mb'] for r in rounds):.0f})"
        ratios = [a["samples_per_s"] / b["samples_per_s"] for a, b in zip(found["ours"], rounds, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {memory} | {_spread(ratios, 2)} |")


def _spread(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{v:.{digits}f}" for v in (min(values), median(values), max(values)))


def resumes(bench: Bench, repeats: int, samples: int) -> None:
    """From a saved state in the middle of an epoch to the first batch."""
    steps = samples // BATCH // 2
    found: dict[str, list[float]] = {name: [] for name in bench.libraries}
    notes = {}
    for name in bench.libraries:
        state = bench.folder / f"half-{name}"
        bench.ask(name, task="stop", steps=steps, states=[str(state)])
        notes[name] = "" if state.is_file() else f"no state: reads {steps} batches again"
    for _ in range(repeats):
        for name in bench.libraries:
            state = bench.folder / f"half-{name}"
            found[name].append(bench.ask(name, task="resume", steps=steps, states=[str(state)])["resume_s"])
    print("\n| resume in the middle of an epoch | s | |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {_spread(values, 3)} | {notes[name]} |")


def resize(bench: Bench, library: str, steps: int, *, workers: tuple[int, int] = (0, 0)) -> tuple[int, int, str]:
    """Duplicates and misses of two ranks that are killed after `steps` and three that go on; and what was refused."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    states = [str(folder / f"state-{r}.pt") for r in range(2)]
    running = [bench.start(library, task="stop", steps=steps, states=states, rank=r, world=2, workers=workers[0]) for r in range(2)]
    stopped = [bench.answer(p, library, killed=True) for p in running]
    refused = next((s["refused"] for s in stopped if s["refused"]), "")
    if workers[1]:
        (folder / "three").mkdir()  # 7.4.1 says that it makes it, and does not
        bench.energon("checkpoint", "redist", *states, folder / "three", "--new-world-size", "3")
        states = [str(folder / "three" / f"state-{r}.pt") for r in range(3)]
    running = [bench.start(library, task="rest", states=states, rank=r, world=3, workers=workers[1]) for r in range(3)]
    rests = [bench.answer(p, library) for p in running]
    refused = refused or next((s["refused"] for s in rests if s["refused"]), "")
    seen = Counter(key for part in (*stopped, *rests) for key in part["keys"])
    everything = set(read_index(bench.tars)["sample"].to_pylist())
    assert set(seen) <= everything
    return sum(seen.values()) - len(seen), len(everything - set(seen)), refused


def resizes(bench: Bench, stops: Sequence[int]) -> None:
    print(f"\n| killed at 2 ranks, continued by 3, after {', '.join(map(str, stops))} steps | duplicates | misses | |")
    print("|---|---|---|---|")
    cases = [(name, name, (0, 0)) for name in bench.libraries]
    if "energon" in bench.libraries:
        cases.append(("energon, 3 workers a rank, then 2, `checkpoint redist`", "energon", (3, 2)))
    for title, name, workers in cases:
        found = [resize(bench, name, steps, workers=workers) for steps in stops]
        refused = next((r for *_, r in found if r), "")
        said = f"refuses: `{refused}`" if refused else ""
        print(f"| {title} | {', '.join(str(d) for d, _, _ in found)} | {', '.join(str(m) for _, m, _ in found)} | {said} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", default=LIBRARIES, help=f"of {', '.join(LIBRARIES)}; by default all")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--decoded", type=int, default=DECODED, help="samples that a round with decode reads")
    parser.add_argument("--size", type=int, default=SIZE_PX)
    parser.add_argument("--envs", type=Path, default=ENVS, help="where the libraries' environments are kept")
    args = parser.parse_args()
    libraries = ["ours", *(name for name in args.libraries if name != "ours")]
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = Bench(Path(folder), libraries, args.envs)
        except NoRegistry as e:
            print(f"left out: {e}")
            return 0
        began = time.perf_counter()
        bench.make_samples(args.samples, args.size)
        each = sum(p.stat().st_size for p in bench.tars.glob("*.tar")) / args.samples / 1e6
        versions = ", ".join(f"{name} {bench.ask(name, task='version')}".strip() for name in libraries)
        print(
            f"{versions}; {args.samples} samples of {each:.2f} MB, {args.size} px, {CLIP_FRAMES} frames, {TARS} tars, batches of {BATCH},"
        )
        print(f"shuffled (buffers of {BUFFER}); made in {time.perf_counter() - began:.0f} s; Python {sys.version.split()[0]}")
        print(f"{check_pixels(bench)} samples decode to the same pixels in all; min / median / max of {args.repeats} rounds:")
        for decode in (False, True):
            for workers in (0, 2):
                samples = args.decoded if decode else 0
                print(f"\n{'with' if decode else 'without'} decode, {workers} threads or processes beside the main one:", flush=True)
                table(rates(bench, args.repeats, decode=decode, workers=workers, samples=samples))
        resumes(bench, args.repeats, args.samples)
        resizes(bench, [s * args.samples // SAMPLES for s in STOPS])
    return 0


if __name__ == "__main__":
    sys.exit(main())
