"""Where to compute."""

from __future__ import annotations

import torch


def device_of(name: str | None) -> torch.device:
    """The device of this name; None: a GPU where there is one. Raises ValueError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:  # torch's words for a device that it does not know or have
        raise ValueError(f"device {name!r}: {e}; leave it out to have one chosen") from e
    return device
