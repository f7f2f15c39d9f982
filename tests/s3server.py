"""An S3 server for tests: moto's, as a process of its own, behind a layer that fails requests on demand.

The faults are real. `truncate` sends the whole headers and half the body and closes the socket; `lost_request` closes it without having
done what was asked; `lost_answer` does it and closes the socket without a word. `internal_error` (500), `slow_down` (503), `forbidden` and
`stranger` (403, of an unknown access key) are answers as S3 gives them, and nothing was done. `delay` does as asked, but late: past a
client's time-out it is done all the same, maybe after the client's next try.

What a request gets hangs on the seed, its method, its path and how many times that was asked for since `faults`: not on who came first.

A test uses the fixture `s3`. Its variables are in the environment from the start of the session, so Ray workers and other children find
the server whichever of `s3` and `ray_session` came first. For a server of the test's own, give `environment()` to the child itself, or to
Ray as `runtime_env={"env_vars": server.environment()}`: a Ray worker inherits only what was set when `ray.init` ran.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Fault = Literal["internal_error", "slow_down", "delay", "truncate", "lost_request", "lost_answer", "forbidden", "stranger"]
_ERRORS = {
    "internal_error": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "forbidden": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "stranger": ("403 Forbidden", "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
}
_START_S = 60.0


@dataclass(frozen=True)
class Faults:
    """A request gets at most one fault, each kind at its own rate; only those of `methods` (all, if empty) whose "bucket/key" matches."""

    seed: int = 0
    rates: dict[Fault, float] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    match: str = ""
    at_most: int | None = None
    delay_s: float = 0.5

    def draw(self, method: str, path: str, nth: int) -> Fault | None:
        """The fault of the nth such request."""
        if (self.methods and method not in self.methods) or not re.search(self.match, path):
            return None
        digest = hashlib.blake2b(f"{self.seed} {method} {path} {nth}".encode(), digest_size=8).digest()
        at = int.from_bytes(digest, "big") / 2**64
        for fault, rate in self.rates.items():
            if at < rate:
                return fault
            at -= rate
        return None


@dataclass(frozen=True)
class Counts:
    """Since `faults` was last called: requests by method, and faults injected by kind."""

    requests: dict[str, int]
    injected: dict[str, int]


class S3Server:
    """Holds its port from the first moment; the server comes with `start`, empty, and `stop` loses what it stored."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._held: socket.socket | None = _bound(0)
        self.port: int = self._held.getsockname()[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What botocore, s3fs and pyarrow need to find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns once the server answers."""
        assert self.process is None, "started twice"
        held = self._held or _bound(self.port)
        command = [sys.executable, "-P", __file__, str(held.fileno()), str(os.getpid())]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[held.fileno()])
        # a copy kept open here would go on accepting connections after the server was killed
        held.close()
        self._held = None
        end = time.monotonic() + _START_S
        while True:
            try:
                self.calm()
                return
            except ConnectionError:
                assert self.process.poll() is None, "the S3 server ended at its start: its error is on stderr"
                assert time.monotonic() < end, f"the S3 server did not answer within {_START_S:.0f} s"
                time.sleep(0.05)

    def stop(self) -> None:
        """Kills the server, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def make_bucket(self, name: str) -> str:
        self._ask("PUT", f"/{name}")
        return name

    def faults(
        self,
        rates: Mapping[Fault, float],
        *,
        seed: int = 0,
        methods: Sequence[str] = (),
        match: str = "",
        at_most: int | None = None,
        delay_s: float = 0.5,
    ) -> None:
        """From now on requests fail; `match` is searched for in "bucket/key". The counts begin anew."""
        wanted = Faults(seed=seed, rates=dict(rates), methods=tuple(methods), match=match, at_most=at_most, delay_s=delay_s)
        self._ask("POST", "/_faults", json.dumps(asdict(wanted)).encode())

    def calm(self) -> None:
        """No faults from now on; the counts stay and go on."""
        self._ask("DELETE", "/_faults")

    def counts(self) -> Counts:
        return Counts(**json.loads(self._ask("GET", "/_faults")))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, f"{method} {path}: {answer.status} {text.decode()}"
            return text
        finally:
            connection.close()


def _bound(port: int) -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    return held


class _Faulty:
    """WSGI: steers itself at /_faults and passes everything else on to `app`, or does not."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        # moto looks for a key and stores it in two steps: without the lock two conditional writes can both win
        self.one_at_a_time = threading.Lock()
        self.lock = threading.Lock()
        self.wanted = Faults()
        self.asked: Counter[tuple[str, str]] = Counter()
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # read before anything else: a client that is still sending would see a reset where an answer is meant
        body = _body(environ)
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/")
        if path == "_faults":
            return self._steer(method, body, start_response)
        fault, delay_s = self._fault(method, path)
        if fault == "delay":
            time.sleep(delay_s)
        if fault in _ERRORS:
            status, text = _error(fault, path)
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
            return [] if method == "HEAD" else [text]
        if fault == "lost_request":
            _hang_up(environ)
        status, headers, answer = self._answer(environ, body)
        if fault == "lost_answer":
            _hang_up(environ)
        start_response(status, headers)
        return _half(environ, answer) if fault == "truncate" else [answer]

    def _steer(self, method: str, body: bytes, start_response: Callable[..., Any]) -> list[bytes]:
        with self.lock:
            if method == "POST":
                asked = json.loads(body)
                self.wanted = Faults(**{**asked, "methods": tuple(asked.get("methods", ()))})
                for counter in (self.asked, self.requests, self.injected):
                    counter.clear()
            elif method == "DELETE":
                self.wanted = Faults()
            text = json.dumps({"requests": self.requests, "injected": self.injected}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
        return [text]

    def _fault(self, method: str, path: str) -> tuple[Fault | None, float]:
        with self.lock:
            self.requests[method] += 1
            self.asked[method, path] += 1
            spent = self.wanted.at_most is not None and self.injected.total() >= self.wanted.at_most
            fault = None if spent else self.wanted.draw(method, path, self.asked[method, path])
            # half of nothing is whole, and a test makes its buckets whatever else fails
            if (fault == "truncate" and method != "GET") or (method == "PUT" and "/" not in path.rstrip("/")):
                fault = None
            if fault:
                self.injected[fault] += 1
            return fault, self.wanted.delay_s

    def _answer(self, environ: dict[str, Any], body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        environ = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        with self.one_at_a_time:
            answer = b"".join(self.app(environ, lambda status, headers, exc_info=None: begun.append((status, headers))))
        return *begun[-1], answer


def _body(environ: dict[str, Any]) -> bytes:
    if environ.get("wsgi.input_terminated"):
        return environ["wsgi.input"].read()
    return environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _error(fault: str, path: str) -> tuple[str, bytes]:
    status, code, message = _ERRORS[fault]
    text = f"<Error><Code>{code}</Code><Message>{message}</Message><Resource>/{path}</Resource><RequestId>0</RequestId></Error>"
    return status, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()


def _half(environ: dict[str, Any], answer: bytes) -> Iterator[bytes]:
    yield answer[: len(answer) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> None:
    """An orderly close (FIN): what a client must not take for the end of the body."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("a fault that was asked for")


def _serve(fd: int, parent: int) -> None:
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        disable_nagle_algorithm = True

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = make_server("127.0.0.1", 0, _Faulty(create_backend_app("s3")), threaded=True, request_handler=Handler, fd=fd)
    server.socket.listen(256)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # a pipe would do, did no fork of the parent hold its other end
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
