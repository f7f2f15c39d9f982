"""A lease on a run in an object store: a small object that its holder writes anew every few seconds, as long as it lives.

Nobody's clock is believed. Whoever finds a lease watches it: one that is not written anew for `_LAPSE_S` has lost its holder, and is
taken over by a PUT on condition that it is still the one that was watched. A dead process on this machine is known at once.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from schemas.files import StorageError
from schemas.store import ObjectStore, Store

NAME = ".lock"
_RENEW_S = 5.0
_LAPSE_S = 30.0
_TRIES = 10  # at taking it, each after another look


@contextmanager
def held(run: Store) -> Iterator[None]:
    """Holds the run's lease for the length of the block.

    Raises:
        ValueError: another process holds it.
    """
    assert isinstance(run, ObjectStore), run
    me = {"token": uuid.uuid4().hex, **_process()}
    tag = _take(run, me)
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(run, me, tag, stop), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        with suppress(StorageError):  # whoever comes next finds it lapsed
            if _holder(run)[0].get("token") == me["token"]:
                run.delete([NAME])


def _take(run: ObjectStore, me: dict[str, Any]) -> str:
    """The tag of the lease that is ours now."""
    for tries_left in reversed(range(_TRIES)):
        found, tag = _holder(run)
        if found and not _is_dead(found):
            tag = _watch(run, tag)
        try:
            # One try: while the store takes nothing, a holder cannot renew its lease either, and is watched anew.
            mine = run.write_if(NAME, _encode(me), tag, patient=False)
        except StorageError:
            if not tries_left:
                raise
            continue
        if mine is None:
            raise ValueError(f"{run}: another crosspair process has just begun to work on this run; wait for it or stop it")
        return mine
    raise AssertionError


def _watch(run: ObjectStore, tag: str) -> str:
    """The tag of a lease that has lapsed; "" when it has gone. Raises ValueError when its holder lives."""
    until = time.monotonic() + _LAPSE_S
    while time.monotonic() < until:
        time.sleep(1.0)
        asked = time.monotonic()
        found, now = _holder(run)
        if not found:
            return ""
        if now != tag:
            raise ValueError(f"{run}: another crosspair process works on this run ({_who(found)}); wait for it or stop it")
        if time.monotonic() - asked > _RENEW_S:  # a bad moment of the store, and of the holder
            until = time.monotonic() + _LAPSE_S
    return tag


def _keep(run: ObjectStore, me: dict[str, Any], tag: str, stop: threading.Event) -> None:
    """Writes the lease anew until told to stop. A process that has lost it, having slept too long, must not go on: it ends."""
    beat = 0
    while not stop.wait(_RENEW_S):
        beat += 1
        try:
            renewed = run.write_if(NAME, _encode({**me, "beat": beat}), tag)
            if renewed is None:
                found, renewed = _holder(run)
                if found.get("token") != me["token"]:
                    _give_up(f"{run}: another process has taken over this run")
                # Else it was written by an earlier try, whose answer was lost in a bad moment.
            tag = renewed
        except StorageError:  # all that this process writes goes there too; once it is back, the tag tells whether the lease is still ours
            continue
        except BaseException as e:
            _give_up(f"{run}: the lease on this run cannot be kept: {e!r}")


def _give_up(why: str) -> None:
    os.write(2, f"crosspair: {why}; stopping\n".encode())
    os._exit(3)


def _holder(run: ObjectStore) -> tuple[dict[str, Any], str]:
    """Who holds the lease and its tag; nothing when nobody does."""
    try:
        data, tag = run.read_tagged(NAME)
        return dict(json.loads(data)), tag
    except FileNotFoundError:
        return {}, ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine and is no more."""
    if holder.get("boot") != _process()["boot"] or not holder.get("boot"):
        return False
    return _started(int(holder["pid"])) != holder["started"]


def _process() -> dict[str, Any]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    # A container has its own process numbers: another one on the same machine is another machine here.
    space = os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").is_symlink() else ""  # noqa: PTH115 -- no path
    name = f"{boot.read_text().strip()} {space}" if boot.is_file() else ""
    return {"host": socket.gethostname(), "boot": name, "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks since it was switched on; "" when there is none."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _encode(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder, sort_keys=True).encode()
