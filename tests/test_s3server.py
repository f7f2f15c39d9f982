"""Each fault of the S3 server happens on the wire, only where it was asked for, and a client that tries again gets through."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import botocore.client
import botocore.config
import botocore.exceptions
import botocore.session
import psutil
import pytest
import s3fs
from s3server import Fault, S3Server

# moto checks no signature, but takes a request without one for a stranger's
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
BODY = bytes(range(256)) * 400
KEYS = [f"faulty/{n}" for n in range(40)]


def raw(server: S3Server, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request without a client's retries."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, f"/{path}", body, SIGNED)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def one_try() -> botocore.client.BaseClient:
    config = botocore.config.Config(retries={"total_max_attempts": 1})
    return botocore.session.get_session().create_client("s3", config=config)


def s3fs_anew() -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.make_bucket("faulty")


@pytest.mark.parametrize("fault", sorted({*get_args(Fault)} - {"forbidden", "stranger"}))
def test_a_client_that_tries_again_gets_through(s3: S3Server, bucket: str, fault: Fault) -> None:
    fs = s3fs_anew()

    def there_and_back(key: str) -> bool:
        fs.pipe_file(key, BODY + key.encode())
        return fs.cat_file(key, start=0) == BODY + key.encode()

    s3.faults({fault: 0.1}, delay_s=0.05)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(there_and_back, KEYS))
    assert set(s3.counts().injected) == {fault}
    s3.calm()
    assert all(fs.cat_file(key, start=0) == BODY + key.encode() for key in KEYS)


def test_a_truncated_body_is_short_of_its_announced_length(s3: S3Server, bucket: str) -> None:
    raw(s3, "PUT", "faulty/half", BODY)
    s3.faults({"truncate": 1.0})
    with pytest.raises(http.client.IncompleteRead) as caught:
        raw(s3, "GET", "faulty/half")
    assert caught.value.partial == BODY[: len(BODY) // 2]
    assert caught.value.expected == len(BODY) - len(BODY) // 2


@pytest.mark.parametrize(("fault", "stored"), [("lost_request", 404), ("lost_answer", 200)])
def test_a_dropped_put_is_stored_or_not(s3: S3Server, bucket: str, fault: Fault, stored: int) -> None:
    s3.faults({fault: 1.0})
    with pytest.raises(http.client.RemoteDisconnected):
        raw(s3, "PUT", f"faulty/dropped_{fault}", BODY)
    s3.calm()
    assert raw(s3, "HEAD", f"faulty/dropped_{fault}")[0] == stored


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("internal_error", 500, "InternalError"), ("slow_down", 503, "SlowDown"), ("forbidden", 403, "AccessDenied")],
)
def test_an_error_reads_as_one_of_s3_and_nothing_was_stored(s3: S3Server, bucket: str, fault: Fault, status: int, code: str) -> None:
    s3.faults({fault: 1.0})
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        one_try().put_object(Bucket=bucket, Key=f"refused_{fault}", Body=BODY)
    assert (caught.value.response["ResponseMetadata"]["HTTPStatusCode"], caught.value.response["Error"]["Code"]) == (status, code)
    s3.calm()
    assert raw(s3, "HEAD", f"faulty/refused_{fault}")[0] == 404


def test_a_delayed_request_is_carried_out_after_its_client_gave_up(s3: S3Server, bucket: str) -> None:
    s3.faults({"delay": 1.0}, delay_s=1.5)
    with socket.create_connection(("127.0.0.1", s3.port)) as connection:
        connection.sendall(b"PUT /faulty/late HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nlate")
        while not s3.counts().injected:
            time.sleep(0.02)
    s3.calm()
    seen = [raw(s3, "GET", "faulty/late")]
    for _ in range(100):
        if seen[-1] == (200, b"late"):
            break
        time.sleep(0.05)
        seen.append(raw(s3, "GET", "faulty/late"))
    assert (seen[0][0], seen[-1]) == (404, (200, b"late"))


def test_which_requests_fail_depends_on_the_seed_and_not_on_the_order(s3: S3Server, bucket: str) -> None:
    def failing(seed: int, keys: Iterable[str]) -> set[str]:
        s3.faults({"slow_down": 0.3}, seed=seed)
        return {key for key in keys if raw(s3, "PUT", key)[0] == 503}

    first = failing(1, KEYS)
    assert 0 < len(first) < len(KEYS)
    assert failing(1, reversed(KEYS)) == first != failing(2, KEYS)


def test_faults_keep_to_the_methods_keys_and_number_asked_for(s3: S3Server, bucket: str) -> None:
    s3.faults({"internal_error": 1.0}, methods=["PUT"], match=r"/a\d$", at_most=2)
    asked = [("PUT", "faulty/b1"), ("PUT", "faulty/a1"), ("GET", "faulty/a1"), ("PUT", "faulty/a1"), ("PUT", "faulty/a1")]
    assert [raw(s3, method, path)[0] for method, path in asked] == [200, 500, 404, 500, 200]
    assert (s3.counts().requests, s3.counts().injected) == ({"PUT": 4, "GET": 1}, {"internal_error": 2})


def test_a_conditional_write_has_one_winner(s3: S3Server, bucket: str) -> None:
    fs = s3fs_anew()

    def wins(condition: dict[str, str], body: int) -> bool:
        try:
            fs.pipe_file("faulty/contended", str(body).encode(), **condition)
            return True
        except OSError as e:
            assert getattr(e.__cause__, "response", {})["ResponseMetadata"]["HTTPStatusCode"] == 412
            return False

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(lambda n: wins({"mode": "create"}, n), range(64))) == 1
        stale = fs.info("faulty/contended")["ETag"]
        assert sum(threads.map(lambda n: wins({"IfMatch": stale}, n + 64), range(64))) == 1


def test_a_writer_who_lost_the_answer_is_refused_its_own_object(s3: S3Server, bucket: str) -> None:
    """aiohttp repeats the request beneath every retry that can be configured: whoever writes conditionally must look whose object it is."""
    s3.faults({"lost_answer": 1.0}, at_most=1)
    fs = s3fs.S3FileSystem(config_kwargs={"retries": {"total_max_attempts": 1}}, skip_instance_cache=True)
    fs.retries = 1
    with pytest.raises(FileExistsError):
        fs.pipe_file("faulty/own", b"mine", mode="create")
    assert fs.cat_file("faulty/own", start=0) == b"mine"


@pytest.mark.usefixtures("ray_session")
def test_ray_workers_find_the_server(s3: S3Server, bucket: str) -> None:
    import ray

    @ray.remote
    def write() -> int:
        s3fs.S3FileSystem().pipe_file("faulty/from_ray", b"hello")
        return os.getpid()

    assert ray.get(write.remote()) != os.getpid()
    assert raw(s3, "GET", "faulty/from_ray") == (200, b"hello")


def test_a_stopped_server_refuses_and_comes_back_empty_at_its_port() -> None:
    server = S3Server()
    try:
        server.start()
        server.make_bucket("short")
        raw(server, "PUT", "short/lived", BODY)
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            raw(server, "GET", "short/lived")
        server.start()
        assert raw(server, "GET", "short/lived")[0] == 404
    finally:
        server.stop()


def test_the_server_ends_when_its_parent_is_killed() -> None:
    code = "import time; from s3server import S3Server; s = S3Server(); s.start(); print(s.process.pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    psutil.wait_procs([server], timeout=10)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
