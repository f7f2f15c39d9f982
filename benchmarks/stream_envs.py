"""Environments of other libraries, each its own: what they depend on breaks ours, and each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVS = Path("~/.cache/crosspair-bench").expanduser()
_SHARED = (
    "torch",
    "numpy",
    "av",
    "opencv-contrib-python",
    "pyarrow",
    "fsspec",
    "xxhash",
)  # in the versions of constraints.txt: what decodes is the same
LIBRARIES = {
    "webdataset": ("webdataset==1.0.2",),
    "litdata": ("litdata==0.2.76", "torchvision==0.28.0"),  # an unpinned torchvision brings another torch
    "energon": ("megatron-energon==7.4.1",),
}


class NoRegistry(RuntimeError):
    """pip cannot build the environment, for want of a registry or of a package in it."""


def python_of(library: str, envs: Path = ENVS) -> Path:
    """The interpreter of a library's environment, which is built if it is not there yet or has other versions. Raises NoRegistry."""
    if library == "ours":
        return Path(sys.executable)
    folder, wanted = envs / library, _requirements(library)
    python, ready = folder / "bin" / "python", folder / "ready.txt"
    if ready.is_file() and ready.read_text() == "\n".join(wanted):
        return python
    envs.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    done = subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoRegistry(f"pip cannot install {' '.join(wanted)}: {done.stderr.strip().splitlines()[-1:]}")
    ready.write_text("\n".join(wanted))
    return python


def _requirements(library: str) -> list[str]:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    return [*(f"{name}=={pinned[name]}" for name in _SHARED), *LIBRARIES[library]]


def environment(**more: str) -> dict[str, str]:
    """For a process of any of them: our packages are found, and one process is one thread but for those that it starts itself."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}
