"""Runs a function in several processes that form a process group over gloo, and hands back what each of them returned."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_LIMIT_S = 300
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["model.trainer"])  # imported once, not by each


def _member(work: Callable[..., Any], meeting: str, rank: int, world: int, results: Any, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    results.put((rank, work(*args)))
    dist.barrier()
    dist.destroy_process_group()


def members(world: int, work: Callable[..., Any], *args: Any) -> None:
    """For processes that may die: nothing is handed back."""
    with tempfile.TemporaryDirectory() as folder:
        results, meeting = _context.Queue(), str(Path(folder) / "meeting")
        processes = [_context.Process(target=_member, args=(work, meeting, r, world, results, args)) for r in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_LIMIT_S)


def together(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """By rank. `work` and what it takes and gives must be picklable; it finds the others in torch.distributed."""
    with tempfile.TemporaryDirectory() as folder:
        results = _context.Queue()
        meeting = str(Path(folder) / "meeting")
        processes = [_context.Process(target=_member, args=(work, meeting, r, world, results, args)) for r in range(world)]
        for process in processes:
            process.start()
        found = dict(results.get(timeout=_LIMIT_S) for _ in processes)
        for process in processes:
            process.join(_LIMIT_S)
        assert all(p.exitcode == 0 for p in processes)
    return [found[r] for r in range(world)]
