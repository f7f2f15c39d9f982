"""One library at work, in a process and an environment of its own: `python -m benchmarks.stream_worker JOB`, started by benchmarks.stream.

Prints one line of JSON. What a task is for is said there.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
import zlib
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.stream_readers import Job, decode_sample

_PACKAGES = {"energon": "megatron-energon", "ours": ""}
_OURS = {"digests": "Digests", "headers": "Headers"}  # checked otherwise


def main() -> None:
    raw = json.loads(sys.argv[1])
    job = Job(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
    cv2.setNumThreads(1)
    module = import_module(f"benchmarks.stream_readers.{'ours' if job.library in _OURS else job.library}")
    kind = getattr(module, _OURS.get(job.library, "Reader"), None)
    tasks = {"rate": rate, "resume": resume, "stop": stop, "rest": rest, "pixels": pixels, "write": write, "version": version}
    print(json.dumps(tasks[job.task](job, kind if job.task != "write" else module)), flush=True)


def version(job: Job, _: Any) -> str:
    package = _PACKAGES.get(job.library, job.library)
    return metadata.version(package) if package else ""


def rate(job: Job, kind: Any) -> dict[str, float]:
    """An epoch, or as much of it as `samples` says. The rate is of what comes after the first batch; CPU and memory are of it all."""
    imported_mb, cpu, began = _peak_mb(), _cpu_s(), time.perf_counter()
    reader = kind(job)
    batches = iter(reader.batches())
    total = len(next(batches))
    first = time.perf_counter()
    after = 0
    for batch in batches:
        after += len(batch)
        if job.samples and after >= job.samples:
            break
    end, peak_mb = time.perf_counter(), _peak_mb()
    del batches, batch, reader
    gc.collect()  # ends a DataLoader's workers, whose CPU seconds count from then on
    total += after
    return {
        "samples": total,
        "first_batch_s": first - began,
        "samples_per_s": after / (end - first),
        "cpu_ms_per_sample": 1000 * (_cpu_s() - cpu) / total,
        "peak_mb": peak_mb,
        "imported_mb": imported_mb,
    }


def resume(job: Job, kind: Any) -> dict[str, Any]:
    """From nothing to the first batch after a saved state. What has no state reads again what it had read."""
    began = time.perf_counter()
    reader = kind(job)
    skipped = 0
    if all(Path(p).is_file() for p in job.states):
        reader.load([Path(p) for p in job.states])
    else:
        skipped = job.steps
    batches = iter(reader.batches())
    for _ in range(skipped):
        next(batches)
    next(batches)
    return {"resume_s": time.perf_counter() - began, "skipped_steps": skipped}


def stop(job: Job, kind: Any) -> None:
    """Reads some steps, says what it read, saves where it is, reads on, and dies without a word."""
    reader = kind(job)
    batches = iter(reader.batches())
    keys = [key for _ in range(job.steps) for key, _ in next(batches)]
    refused = ""
    try:
        reader.save(Path(job.states[job.rank]))
    except Exception as e:
        refused = _said(e)
    print(json.dumps({"keys": keys, "refused": refused}), flush=True)
    for _ in range(2):  # done after the checkpoint, so undone by the death
        next(batches)
    os.kill(os.getpid(), signal.SIGKILL)


def rest(job: Job, kind: Any) -> dict[str, Any]:
    """Goes on from what was saved to the end of the epoch; where that is refused, begins the epoch anew."""
    reader = kind(job)
    refused = ""
    try:
        reader.load([Path(p) for p in job.states if Path(p).is_file()])
    except Exception as e:
        reader, refused = kind(job), _said(e)
    keys: list[str] = []
    try:
        for batch in reader.batches():
            keys += [key for key, _ in batch]
    except Exception as e:
        refused = f"stops: {_said(e)}"
    return {"keys": keys, "refused": refused}


def pixels(job: Job, kind: Any) -> dict[str, int]:
    """Checksums of some samples' pictures, to show that all libraries hand over the same."""
    found: dict[str, int] = {}
    for batch in kind(job).batches():
        for key, data in batch:
            if key in job.keys:
                pictures = data if job.decode else decode_sample(key, data, job.seed)
                found[key] = zlib.crc32(b"".join(np.asarray(p).tobytes() for p in pictures))
        if len(found) == len(job.keys):
            break
    return found


def write(job: Job, module: Any) -> None:
    module.write(job.tars, job.chunks)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _peak_mb() -> float:
    """Of this process and those that it started and that still run; what they share counts in each."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return sum(_high_water_kb(pid) for pid in (str(os.getpid()), *children)) / 1024


def _high_water_kb(pid: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
