"""Objects: whatever a key looks like, it is found, looked at and fetched as it is; what may not be done is told from what fails."""

from __future__ import annotations

import errno
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3server import S3Server

import schemas.objects
import schemas.store
from schemas.files import StorageError
from schemas.ids import digest
from schemas.objects import fetch_object, list_keys, object_state, object_states, read_object
from schemas.store import ObjectStore

KEYS = [
    "plain",
    "a//b",
    "/leading",
    "a/../b",
    "a/./c",
    "sp ace 'q' \"#\" ?%20[x]*+&<ü☃>",
    "-dash",
    "tab\t",
    "\ue000",
    "😀",
    "C:\\x",
    "slash/",
]
WEATHER = {"internal_error": 0.05, "slow_down": 0.05, "truncate": 0.1, "lost_request": 0.05, "lost_answer": 0.05}


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> ObjectStore:
    return ObjectStore(f"s3://{s3.make_bucket(f'objects-{digest(request.node.name)}')}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))


def put(bucket: ObjectStore, key: str, data: bytes) -> str:
    """The object's URI. Not by `write`, which takes names of its own making only."""
    bucket._fs.call_s3("put_object", Bucket=str(bucket)[5:], Key=key, Body=data)
    return f"{bucket}/{key}"


def test_a_key_is_taken_as_it_is(bucket: ObjectStore, tmp_path: Path) -> None:
    uris = [put(bucket, key, key.encode()) for key in KEYS]
    states = object_states(uris)
    for n, (uri, key) in enumerate(zip(uris, KEYS, strict=True)):
        assert states[uri] == object_state(uri) and states[uri].size_bytes == len(key.encode())
        assert read_object(uri) == key.encode()
        fetch_object(uri, states[uri], tmp_path / str(n))
        assert (tmp_path / str(n)).read_bytes() == key.encode()
    assert list(list_keys(str(bucket)[5:], "")) == sorted(KEYS)
    assert list(list_keys(str(bucket)[5:], "a/", deep=False)) == []


@pytest.mark.parametrize(
    "uri", ["s3:///x", "s3://", "s3://my bucket/x", "s3://nobody-made-it/x", "s3://{}", "s3://{}/no", "s3://{}/" + "x" * 1025]
)
def test_what_cannot_be_is_not_there(bucket: ObjectStore, uri: str) -> None:
    uri = uri.replace("{}", str(bucket)[5:])
    for look in (object_state, read_object):
        with pytest.raises(FileNotFoundError):
            look(uri)
    assert object_states([uri]) == {}


def test_many_objects_are_looked_at_with_few_requests(bucket: ObjectStore, s3: S3Server) -> None:
    keys = [f"raw/{k:04d}.mp4" for k in range(1100)] + ["other/a.mp4", "zzz.mp4"]
    with ThreadPoolExecutor(8) as pool:
        uris = list(pool.map(lambda key: put(bucket, key, key.encode()), keys))
    s3.faults({})
    states = object_states([*uris, f"{bucket}/raw/0500.mp4.gone", f"{bucket}/a", f"{bucket}/zzzz"])
    assert set(states) == set(uris) and states[uris[7]] == object_state(uris[7])
    assert sum(s3.counts().requests.values()) <= 4 + 1
    assert list(list_keys(str(bucket)[5:], "raw/")) == keys[:1100]


def test_one_that_is_written_anew_is_in_another_state(bucket: ObjectStore, tmp_path: Path) -> None:
    uri = put(bucket, "a", b"old")
    before = object_state(uri)
    put(bucket, "a", b"new")  # in the same second, maybe, and of the same size
    assert object_state(uri) != before and object_states([uri])[uri] == object_state(uri)
    with pytest.raises(ValueError, match=f"{uri}: changes while it is read; run again"):
        fetch_object(uri, before, tmp_path / "a")


def test_a_large_object_comes_in_parts_through_bad_weather(
    bucket: ObjectStore, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas.objects, "_PART_BYTES", 1 << 14)
    data = bytes(range(251)) * 4000
    uri = put(bucket, "film", data)
    s3.faults(WEATHER, seed=5)
    fetch_object(uri, object_state(uri), tmp_path / "film")
    assert (tmp_path / "film").read_bytes() == data
    assert s3.counts().requests["GET"] > len(data) >> 14 and len(s3.counts().injected) > 3


def test_what_may_not_be_looked_at_is_seen_in_a_listing(bucket: ObjectStore, s3: S3Server, impatient: None) -> None:
    uri = put(bucket, "deep/a", b"data")
    state = object_state(uri)
    s3.faults({"forbidden": 1.0}, methods=("HEAD",))
    assert object_state(uri) == state
    with pytest.raises(FileNotFoundError):
        object_state(f"{bucket}/deep/")
    s3.faults({"forbidden": 1.0}, match=f"^{str(bucket)[5:]}/?$")  # listings
    assert object_state(uri) == state and object_states([uri, f"{bucket}/no"]) == {uri: state}
    s3.faults({"forbidden": 1.0})
    for call in (object_state, read_object, lambda uri: list(list_keys(str(bucket)[5:], ""))):
        with pytest.raises(PermissionError):
            call(uri)
    assert object_states([uri]) == {}


@pytest.mark.parametrize("fault", ["internal_error", "lost_request", "stranger"])
def test_a_store_that_fails_or_does_not_know_us_is_no_missing_object(
    bucket: ObjectStore, s3: S3Server, impatient: None, tmp_path: Path, fault: str
) -> None:
    uri = put(bucket, "a", b"data")
    state = object_state(uri)
    s3.faults({fault: 1.0})  # type: ignore[dict-item]
    for call in (object_state, read_object, lambda uri: object_states([uri]), lambda uri: fetch_object(uri, state, tmp_path / "a")):
        with pytest.raises(StorageError) as e:
            call(uri)
        assert str(e.value.filename).startswith(str(bucket))


def test_a_disk_that_is_full_is_not_the_objects_fault(bucket: ObjectStore, tmp_path: Path) -> None:
    uri = put(bucket, "a", bytes(1 << 16))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))
    try:
        with pytest.raises(StorageError) as e:
            fetch_object(uri, object_state(uri), tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert e.value.errno == errno.EFBIG and e.value.filename == str(tmp_path / "copy")
