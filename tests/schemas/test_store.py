"""Stores: the same promises on a disk and in an object store."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3server import S3Server

import schemas.store
from schemas.files import StorageError
from schemas.ids import content_digest, digest, file_digest
from schemas.store import DiskStore, ObjectStore, Store, open_store, scratch_folder

WEATHER = {"internal_error": 0.04, "slow_down": 0.04, "truncate": 0.02, "lost_request": 0.02, "lost_answer": 0.02, "delay": 0.02}


@pytest.fixture(params=["disk", "s3", "s3, bad weather"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """In bad weather every sixth request fails in one of the ways in which they do."""
    if request.param == "disk":
        return DiskStore(tmp_path / "run")
    s3: S3Server = request.getfixturevalue("s3")
    bucket = f"store-{digest(request.node.name)}"
    s3.make_bucket(bucket)
    if request.param != "s3":
        s3.faults(WEATHER, seed=1, delay_s=0.05)
    return open_store(f"s3://{bucket}/deep/run")


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b", b"data")
    assert store.read("a/b") == b"data" and store.size("a/b") == 4 and store.digest("a/b") == content_digest(b"data")
    assert store.sub("a").read("b") == b"data"


def test_what_is_not_there_is_told(store: Store) -> None:
    assert store.size("a") == -1
    for missing in (
        store.read,
        store.digest,
        lambda name: store.read_many(["there", name]),
        lambda name: store.read_ranges(name, [(0, 1)]),
    ):
        store.write("there", b"")
        with pytest.raises(FileNotFoundError):
            missing("a")


def test_many_files_come_in_the_order_asked_for(store: Store) -> None:
    names = [f"f/{k * 7 % 150:03d}" for k in range(150)]
    for name in names:
        store.write(name, name.encode())
    assert store.read_many(names) == [n.encode() for n in names]
    assert store.read_many([]) == [] and store.read_many(names[:1]) == [names[0].encode()]
    assert store.names("f/") == sorted(names) and store.names("f/14") == sorted(n for n in names if n.startswith("f/14"))


def test_stretches_of_a_file(store: Store) -> None:
    store.write("a", bytes(range(100)))
    assert store.read_ranges("a", [(90, 10), (0, 3), (98, 9)]) == [bytes(range(90, 100)), bytes(range(3)), bytes(range(98, 100))]
    assert store.read_ranges("a", [(100, 5), (0, 1)]) == [b"", b"\0"]
    assert store.read_ranges("a", []) == []
    data = bytes(range(256)) * 1024
    store.write("b", data)
    ranges = [(200_000, 9), (3, 5), (8, 2), (4, 100), (9, 0), (262_140, 9), (70_000, 70_000)]
    assert store.read_ranges("b", ranges) == [data[offset : offset + size] for offset, size in ranges]


def test_near_stretches_of_an_object_are_one_request(s3: S3Server) -> None:
    s3.make_bucket("near")
    store = open_store("s3://near/run")
    store.write("a", bytes(300_000))
    for ranges, requests in (([(5_000, 10), (0, 512), (60_000, 9)], 1), ([(0, 9), (200_000, 9), (200_500, 9)], 2)):
        s3.faults({})
        assert [len(part) for part in store.read_ranges("a", ranges)] == [size for _, size in ranges]
        assert s3.counts().requests == {"GET": requests}


def test_an_error_in_mid_writing_leaves_the_old_file(store: Store) -> None:
    store.write("a", b"old")
    with pytest.raises(RuntimeError), store.writing("a") as f:
        f.write(b"half of the new")
        raise RuntimeError
    assert store.read("a") == b"old" and store.names("") == ["a"]


def test_a_file_appears_whole(store: Store) -> None:
    with store.writing("deep/a") as f:
        f.write(b"half")
        f.flush()
        assert store.size("deep/a") == -1 and store.names("") == []
        assert f.tell() == 4
    assert store.read("deep/a") == b"half"


def test_a_local_file_is_taken_over(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1000)
    store.put(tmp_path / "x", "a/x")
    assert store.read("a/x") == b"x" * 1000


def test_names_by_prefix_and_suffix(store: Store) -> None:
    for name in ("a/1.tar", "a/2.parquet", "a/deep/3.tar", "ab/4.tar", "a/.hidden", "5.tar"):
        store.write(name, b"")
    assert store.names("a/", ".tar") == ["a/1.tar", "a/deep/3.tar"]
    assert store.names("a", ".tar") == ["a/1.tar", "a/deep/3.tar", "ab/4.tar"]
    assert store.names("", ".tar") == ["5.tar", "a/1.tar", "a/deep/3.tar", "ab/4.tar"]
    assert store.names("nothing/") == []
    assert "a/.hidden" not in store.names("a/")


def test_folders_by_depth(store: Store) -> None:
    for name in ("artifacts/faces/aa/unit/one/file", "artifacts/faces/aa/unit/two/file", "artifacts/faces/bb/other/one/file"):
        store.write(name, b"")
    assert store.folders("artifacts/faces", 1) == ["artifacts/faces/aa", "artifacts/faces/bb"]
    assert store.folders("artifacts/faces", 3) == [
        "artifacts/faces/aa/unit/one",
        "artifacts/faces/aa/unit/two",
        "artifacts/faces/bb/other/one",
    ]
    assert store.folders("nothing", 1) == []


def test_files_and_folders_go(store: Store) -> None:
    for name in ("a/1", "a/2", "a/deep/3", "b"):
        store.write(name, b"")
    store.delete(["a/1", "never/there"])
    store.delete([])
    assert store.names("") == ["a/2", "a/deep/3", "b"]
    store.delete_folder("a")
    store.delete_folder("never")
    assert store.names("") == ["b"]


def test_a_mark_is_an_empty_file(store: Store) -> None:
    store.mark("open/x")
    assert store.read("open/x") == b"" and store.names("open/") == ["open/x"]


def test_names_with_letters_of_all_kinds(store: Store) -> None:
    for name in ("a/[x]*?.txt", "a/ü 'q\" .txt", "a/[x", "a/x"):
        store.write(name, name.encode())
        assert store.read(name) == name.encode() and name in store.names("a/") and name in store.names(name)


def test_a_store_by_its_place(tmp_path: Path) -> None:
    assert str(open_store("run", tmp_path)) == str(open_store(tmp_path / "run")) == str(tmp_path / "run")
    assert open_store(open_store(tmp_path)) is not None
    with pytest.raises(ValueError, match="gs://bucket/run: a run's folder is a path or s3://bucket/prefix"):
        open_store("gs://bucket/run")
    with pytest.raises(ValueError, match="a run's folder is a path or s3"):
        open_store("s3://")


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> ObjectStore:
    name = f"one-{digest(request.node.name)}"
    s3.make_bucket(name)
    return ObjectStore(f"s3://{name}/run")


def test_an_object_store_that_keeps_failing_is_a_storage_error(bucket: ObjectStore, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))
    bucket.write("a", b"old")
    calls = (lambda: bucket.read("a"), lambda: bucket.write("a", b"new"), lambda: bucket.names(""), lambda: bucket.delete(["a"]))
    for fault, some in (("internal_error", calls), ("slow_down", calls[:1]), ("lost_request", calls[1:2])):
        s3.faults({fault: 1.0})
        for call in some:
            with pytest.raises(StorageError, match=f"^{bucket}"):
                call()
        s3.faults({})
        assert bucket.read("a") == b"old"


def test_a_large_object_that_fails_in_the_middle_is_not_there_and_leaves_nothing(
    bucket: ObjectStore, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))
    (tmp_path / "large").write_bytes(bytes(120 << 20))  # of three parts
    bucket.write("a", b"old")
    s3.faults({"internal_error": 1.0}, methods=("PUT",))  # parts; uploads begin and end with a POST
    with pytest.raises(StorageError):
        bucket.put(tmp_path / "large", "a")
    s3.faults({})
    assert bucket.read("a") == b"old" and bucket.names("") == ["a"]
    assert not bucket._fs.call_s3("list_multipart_uploads", Bucket=str(bucket).split("/")[2]).get("Uploads")
    bucket.put(tmp_path / "large", "a")
    assert bucket.digest("a") == file_digest(tmp_path / "large")


def test_uploads_of_killed_processes_are_ended(bucket: ObjectStore) -> None:
    name, _, key = bucket.at("a").removeprefix("s3://").partition("/")
    bucket._fs.call_s3("create_multipart_upload", Bucket=name, Key=key)
    bucket._fs.call_s3("create_multipart_upload", Bucket=name, Key="elsewhere")
    bucket.clear_unfinished()
    left = bucket._fs.call_s3("list_multipart_uploads", Bucket=name)["Uploads"]
    assert [u["Key"] for u in left] == ["elsewhere"]


def test_of_many_writers_on_condition_one_wins(bucket: ObjectStore, s3: S3Server) -> None:
    s3.faults(WEATHER, seed=2, delay_s=0.05)
    tag = ""
    for generation in range(3):
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(lambda k, tag=tag, g=generation: bucket.write_if("a", f"{g} {k}".encode(), tag), range(8)))
        assert sum(t is not None for t in told) == 1
        data, tag = bucket.read_tagged("a")
        assert data == f"{generation} {next(k for k, t in enumerate(told) if t)}".encode()


def test_what_has_gone_is_in_no_state_that_one_knows(bucket: ObjectStore) -> None:
    bucket.write("a", b"x")
    _, tag = bucket.read_tagged("a")
    bucket.delete(["a"])
    assert bucket.write_if("a", b"y", tag) is None and bucket.size("a") == -1


def test_memory_that_runs_out_is_not_the_stores(bucket: ObjectStore) -> None:
    def call() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        bucket._try("a", call)


def test_a_folder_that_another_tool_made_is_no_file(bucket: ObjectStore) -> None:
    name, _, key = bucket.at("a/").removeprefix("s3://").partition("/")
    bucket._fs.call_s3("put_object", Bucket=name, Key=key, Body=b"")
    assert bucket.names("a/") == [] and bucket.names("") == []


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    with pytest.raises(ValueError, match="s3://nobody-made-it/run: no such bucket"):
        ObjectStore("s3://nobody-made-it/run").write_if("a", b"", "")


def test_scratch_of_killed_processes_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "from schemas.store import scratch_folder as s; import os; (s() / 'file').touch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=Path(__file__).parents[2])
    (left,) = tmp_path.glob("*/file")
    mine = scratch_folder()
    assert not left.exists() and mine.is_dir() and scratch_folder() == mine
