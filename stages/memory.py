"""Memory: what was freed goes back to the system, so that a worker's size has a bound, however many clips it cuts."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Each clip builds MediaPipe's graph anew, in threads of its own, and glibc would keep the pieces: up to 10 MB a clip."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
