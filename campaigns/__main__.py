"""All campaigns, one after another, each in its own process: `make campaign`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

_CAMPAIGNS = ("kills", "mutants")


def main() -> int:
    failed = 0
    for name in _CAMPAIGNS:
        if find_spec(f"campaigns.{name}") is None:
            continue
        print(f"\n== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"campaigns.{name}"], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
