"""Stores: the same promises on a disk and in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.files import StorageError
from schemas.ids import content_digest
from schemas.store import DiskStore, Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return DiskStore(tmp_path / "run")


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
    assert store.read_ranges("a", []) == []


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


def test_a_storage_error_is_an_os_error() -> None:
    assert issubclass(StorageError, OSError)
