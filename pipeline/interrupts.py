"""Interrupts: Ctrl-C, and the SIGTERM of job schedulers, end a command in one way, whatever libraries make of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_AGAIN_S = 3.0


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever tidies up after Ctrl-C does so after this."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt meanwhile, and SIGTERM Terminated, again and again until the block ends: what is raised while some
    library's finaliser runs goes no further."""
    kind: type[KeyboardInterrupt] = KeyboardInterrupt

    def interrupt(number: int, _: object) -> None:
        nonlocal kind
        if number != signal.SIGALRM:
            kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        raise kind

    before = _install(interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _restore(before)


@contextmanager
def resumable(say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a command that can be taken up again with a word about that."""
    try:
        with interruptible():
            yield
    except KeyboardInterrupt as e:
        say("stopped; the same command goes on where it stood")
        raise SystemExit(143 if isinstance(e, Terminated) else 130) from None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Interrupts wait for the end of the block. For Ray's start, which takes SIGTERM for itself, and for its end: broken off, either
    crashes or leaves processes behind."""
    if threading.current_thread() is not threading.main_thread():  # Python leaves signals to the main thread
        yield
        return
    waiting: set[int] = set()
    before = _install(lambda number, _: waiting.add(number))
    try:
        yield
    except SystemExit:  # of Ray's own handler
        waiting.add(signal.SIGTERM)
    finally:
        _restore(before)
        for number in waiting:
            signal.raise_signal(number)


def _install(handler: Callable[[int, Any], object]) -> dict[signal.Signals, Any]:
    """Returns the handlers that were there. What is ignored stays so: the background jobs of a shell ignore a Ctrl-C that is not theirs."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM) if signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: one of native code
