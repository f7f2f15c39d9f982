"""Shards in an object store: one request a sample, a cache of this machine that stays within its size, and a store that is down."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from s3server import S3Server

import schemas.store
from model.cache import Cache
from model.stream import BadSlot, Prefetch, Shards, ShardStream, StreamConfig, Window, find_pair_set
from schemas.files import StorageError
from schemas.ids import digest
from schemas.sample import INDEX_NAME
from schemas.store import open_store

CONFIG = StreamConfig(frames=4, history=2)
TAR = "train-000000.tar"


@pytest.fixture
def remote(pair_set: Path, s3: S3Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """The pair set, as a run's in a bucket."""
    bucket = f"stream-{digest(request.node.name)}"
    s3.make_bucket(bucket)
    store = open_store(f"s3://{bucket}/run/shards/test")
    for path in pair_set.iterdir():
        store.put(path, path.name)
    s3.faults({})
    yield str(store)


def same(a: Window | BadSlot, b: Window | BadSlot) -> bool:
    assert isinstance(a, Window) and isinstance(b, Window)
    pictures = ((a.source, b.source), (a.target, b.target), (a.driving, b.driving))
    return (a.key, a.position, a.first_frame) == (b.key, b.position, b.first_frame) and all(np.array_equal(x, y) for x, y in pictures)


def requests(s3: S3Server) -> int:
    return sum(s3.counts().requests.values())


def test_windows_are_those_of_the_disk_and_take_one_request_each(remote: str, pair_set: Path, s3: S3Server, tmp_path: Path) -> None:
    near = ShardStream(pair_set, CONFIG)
    far = ShardStream(remote, replace(CONFIG, cache_dir=tmp_path / "cache"))
    assert far.digest == near.digest and far.folder == remote
    s3.faults({})
    with Prefetch(far, 3, rank=0, world=1, threads=3) as prefetch:
        first, second = prefetch.batches(0, 2)
    assert all(same(w, near.read(w.position)) for w in [*first, *second])
    assert requests(s3) <= 6
    # both epochs are kept by now, for another process too
    s3.faults({})
    again = ShardStream(remote, replace(CONFIG, cache_dir=tmp_path / "cache"))
    opened = requests(s3)
    assert all(same(w, near.read(w.position)) for w in again.batch(0, 9))
    assert requests(s3) == opened
    plain = ShardStream(remote, CONFIG)
    s3.faults({})
    assert same(plain.read(4), near.read(4)) and s3.counts().requests == {"GET": 1}


def test_a_store_that_is_down_skips_nothing(remote: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ShardStream(remote, CONFIG)
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))
    for fault in ("internal_error", "forbidden", "stranger"):
        s3.faults({fault: 1.0})
        with Prefetch(stream, 2, rank=0, world=1) as prefetch, pytest.raises(StorageError, match=TAR):
            list(prefetch.batches(0, 2))
    s3.faults({})
    assert all(isinstance(w, Window) for w in stream.batch(0, 3))


def test_a_bad_moment_is_waited_for(remote: str, s3: S3Server, pair_set: Path) -> None:
    stream = ShardStream(remote, CONFIG)
    s3.faults({"slow_down": 1.0}, at_most=1)
    assert same(stream.read(0), ShardStream(pair_set, CONFIG).read(0)) and s3.counts().injected == {"slow_down": 1}


def test_a_tar_that_is_lost_costs_its_samples_and_a_bucket_that_is_lost_stops(remote: str) -> None:
    stream, store = ShardStream(remote, CONFIG), open_store(remote)
    store.delete([TAR])
    slots = stream.batch(0, 3)
    assert all(isinstance(s, BadSlot) and f"{remote}/{TAR}: cannot be read" in s.reason for s in slots)
    store.delete([INDEX_NAME])
    with pytest.raises(StorageError, match="was there before"):
        stream.batch(0, 3)


def test_places_are_found_by_uri(remote: str, pair_set: Path) -> None:
    run = remote.removesuffix("/shards/test")
    assert find_pair_set(run) == find_pair_set(remote) == remote
    assert find_pair_set(str(pair_set.parent.parent)) == str(pair_set)
    with pytest.raises(ValueError, match=r"no index; is .* a pair set's folder"):
        ShardStream(find_pair_set(f"{run}/nothing"), CONFIG)
    both = ShardStream([Shards(remote), Shards(str(pair_set))], CONFIG)
    assert len(both) == 6 and len({(type(s), s.position) for s in both.batch(0, 6)}) == 6
    assert sorted(w.key for w in both.batch(0, 6)) == sorted(both.keys)


def test_a_damaged_file_of_the_cache_is_fetched_again(remote: str, s3: S3Server, tmp_path: Path) -> None:
    stream = ShardStream(remote, replace(CONFIG, cache_dir=tmp_path))
    window = stream.read(0)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    for damage in (whole[:-1], b"", whole[:100] + b"?" + whole[101:], whole + b"x"):
        kept.write_bytes(damage)
        s3.faults({})
        assert same(stream.read(0), window)
        assert s3.counts().requests == ({"GET": 1} if damage != whole + b"x" else {}) and len(list(tmp_path.iterdir())) == 1


def test_disks_are_not_copied_and_what_is_kept_is_bytes_alone(pair_set: Path, tmp_path: Path) -> None:
    ShardStream(pair_set, replace(CONFIG, cache_dir=tmp_path)).read(0)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_costs_the_cache_and_nothing_else(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = ShardStream(remote, replace(CONFIG, cache_dir=tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert isinstance(stream.slot(0), Window) and "keeps nothing now" in caplog.text and not list(tmp_path.iterdir())


# --- the cache alone


def total(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.iterdir())


def test_the_cache_stays_within_its_size_and_keeps_what_was_asked_for_last(tmp_path: Path) -> None:
    (tmp_path / "of-the-user").write_bytes(b"x" * 50_000)
    cache = Cache(tmp_path, 64_000)
    for i in range(200):
        cache.put(f"{i}", bytes(1000))
        cache.put("huge", bytes(40_000))
        assert cache.get("0") == bytes(1000)  # always in use
        os.utime(tmp_path / "0.sample", (2e9 + i, 2e9 + i))
        assert total(tmp_path) - 50_000 <= 64_000
    assert cache.get("199") and cache.get("1") is None and cache.get("huge") is None
    assert (tmp_path / "of-the-user").exists()


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    """Each writes and reads its own and the others' for a while; at no moment is there too much, or a file that is not whole."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom model.cache import Cache\n"
        "me, folder = int(sys.argv[1]), Path(sys.argv[2])\ncache = Cache(folder, 64_000)\n"
        "for i in range(400):\n"
        "    cache.put(f'{i % 97}', bytes([i % 97]) * 900)\n"
        "    for k in range(0, 97, 7):\n"
        "        data = cache.get(f'{k}')\n"
        "        assert data is None or data == bytes([k]) * 900, (k, len(data))\n"
    )
    ran = [subprocess.Popen([sys.executable, "-c", code, str(k), str(tmp_path)]) for k in range(3)]
    most = 0
    while any(p.poll() is None for p in ran):
        sizes = []
        for path in tmp_path.iterdir():
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        most = max(most, sum(sizes))
        time.sleep(0.01)
    assert [p.returncode for p in ran] == [0, 0, 0] and 0 < most <= 64_000


def test_what_killed_processes_were_writing_goes_in_time(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmp-old.sample", tmp_path / ".tmp-new.sample"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Cache(tmp_path, 64_000).put("a", b"a")
    assert not old.exists() and new.exists()


def test_threads_of_one_process_share_a_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 64_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.put(f"{i}", bytes(1000)), range(300)))
    assert total(tmp_path) <= 64_000
