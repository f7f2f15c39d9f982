"""All benchmarks, one after another, each in its own process: `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys

_ALWAYS = ("memory", "noop", "plan", "prepare", "reenactor", "engine", "dit", "datawait", "stream")
_WITH_REAL_CLIPS = ("meshwarp",)


def main() -> int:
    names = [*_ALWAYS, *(_WITH_REAL_CLIPS if "CROSSPAIR_SHARED" in os.environ else ())]
    failed = 0
    for name in names:
        print(f"\n== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    for name in _WITH_REAL_CLIPS:
        if name not in names:
            print(f"\n== {name}: left out, CROSSPAIR_SHARED is not set (a folder that holds realdata/)")
    return failed


if __name__ == "__main__":
    sys.exit(main())
