"""What a person sees of a run while it works: a bar a step on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_LINE_EVERY_S = 10.0


class ConsoleWatcher:
    """Use as a context manager; a Watcher for `pipeline.run`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task: TaskID | None = None
        self._counts: Counter[str] = Counter()
        self._spoken = 0.0
        self._name = ""

    def __enter__(self) -> ConsoleWatcher:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def step(self, name: str, units: int) -> None:
        self._name, self._spoken = name, time.monotonic()
        self._counts.clear()
        self._task = self._progress.add_task(name, total=units or None, completed=0, note="" if units else "nothing to do")
        if not self._console.is_terminal:
            self._console.print(f"{name}: {units} units" if units else f"{name}: nothing to do")

    def unit(self, stage: str, outcome: str, reason: str) -> None:
        self._counts[f"{stage} {reason or outcome}"] += 1
        note = ", ".join(f"{n} {what}" for what, n in sorted(self._counts.items()))
        if self._task is not None:
            done = sum(self._counts.values())
            total = self._progress.tasks[self._task].total or 0
            self._progress.update(self._task, completed=done, total=max(total, done), note=note)
        if not self._console.is_terminal and time.monotonic() - self._spoken > _LINE_EVERY_S:
            self._spoken = time.monotonic()
            self._console.print(f"{self._name}: {note}")

    def say(self, text: str) -> None:
        self._console.print(text)
