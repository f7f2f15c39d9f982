"""A run in an object store: the same bytes as on a disk, through bad weather and kills, with one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from faceclips import photograph
from PIL import Image
from s3server import S3Server
from smallworld import CONFIG, Finished, Silent, World

import pipeline.lease
import schemas.store
from pipeline import tables
from pipeline.config import RunConfig
from pipeline.ledger import Ledger, due_again
from pipeline.replay import find
from pipeline.report import write_report
from pipeline.run import add_portraits
from pipeline.status import status
from pipeline.storage import exclusive, read_run_file
from pipeline.verify import diff, verify
from pipeline.worker import ROW, StageWorker, row
from schemas.config import parse_config
from schemas.files import StorageError
from schemas.ids import digest
from schemas.outcomes import Outcome
from schemas.store import DiskStore, ObjectStore, Store
from schemas.units import SourceFile

CROSSPAIR = Path(sys.executable).with_name("crosspair")
WEATHER = {"internal_error": 0.02, "slow_down": 0.02, "truncate": 0.02, "lost_request": 0.01, "lost_answer": 0.02, "delay": 0.02}


@pytest.fixture
def bucket(s3: S3Server, request: pytest.FixtureRequest) -> ObjectStore:
    name = f"runs-{digest(request.node.name)}"
    s3.make_bucket(name)
    return ObjectStore(f"s3://{name}/run")


@pytest.fixture
def uploaded(finished: Finished, bucket: ObjectStore) -> ObjectStore:
    """The finished run, copied into a bucket."""
    copy(DiskStore(finished.root), bucket)
    return bucket


def copy(a: Store, b: Store) -> None:
    for name in a.names(""):
        b.write(name, a.read(name))


def scratch() -> list[Path]:
    """What is left of files on their way to or from an object store."""
    return list(Path(tempfile.gettempdir()).glob("crosspair-*"))


def test_a_finished_run_runs_again_and_changes_nothing(uploaded: ObjectStore, world: World) -> None:
    before, watcher = {n: uploaded.digest(n) for n in uploaded.names("") if n != "run.yaml"}, Silent()
    world.run(str(uploaded), watcher)
    assert [units for name, units in watcher.steps if name != "pack"] == [0] * (len(watcher.steps) - 1)
    assert {n: uploaded.digest(n) for n in uploaded.names("") if n != "run.yaml"} == before


def test_every_command_reads_it(uploaded: ObjectStore, finished: Finished) -> None:
    assert verify(uploaded) == [] and diff(uploaded, finished.root) == []
    assert status(uploaded) == status(finished.root)
    done = subprocess.run([CROSSPAIR, "status", str(uploaded), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(status(finished.root)))
    assert write_report(uploaded) == f"{uploaded}/report/index.html"
    assert uploaded.read("report/index.html").count(b"data:image/jpeg") == finished.summary.samples
    unit = next(r["unit"] for r in tables.load(uploaded, "outcomes") if r["stage"] == "regions")
    record = Ledger(finished.root).read("regions", read_run_file(finished.root)["fingerprints"]["regions"])[unit]
    assert find(uploaded, unit, "regions").run()["files"] == record.digests
    assert scratch() == []


@pytest.mark.slow
def test_people_are_added_there_as_on_a_disk(uploaded: ObjectStore, copied: Path, ray_session: None) -> None:
    """There on Ray, here without."""
    said = read_run_file(uploaded)
    said["config"]["ray"] |= {"mode": "streaming", "workers": 2}
    uploaded.write("run.yaml", yaml.safe_dump(said, sort_keys=False).encode())
    Image.fromarray(np.ascontiguousarray(photograph("hopper")[:, ::-1])).save(copied.parent / "new.png")
    for run in (uploaded, copied):
        assert add_portraits(run, ["new.png"], base=copied.parent, watcher=Silent()).samples == 12
    assert diff(uploaded, copied) == [] and verify(uploaded) == []
    assert tables.load(uploaded, "added") == tables.load(copied, "added")


def test_damage_is_found_and_mended(uploaded: ObjectStore, finished: Finished, world: World) -> None:
    (tar,) = uploaded.names("shards/meshwarp/", "train-000000.tar")
    data = bytearray(uploaded.read(tar))
    data[5000] ^= 1
    uploaded.write(tar, bytes(data))
    artifact = next(n for n in uploaded.names("artifacts/regions/") if n.endswith("controls.npz"))
    uploaded.write(artifact, b"something else")
    assert len(verify(uploaded)) == 2
    assert due_again(uploaded, read_run_file(uploaded)["fingerprints"], damaged=True) == 1
    uploaded.delete([tar])
    world.run(str(uploaded))
    assert verify(uploaded) == [] and diff(finished.root, uploaded) == []


def test_a_store_that_fails_books_nothing_against_a_unit(
    bucket: ObjectStore, s3: S3Server, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))
    config = parse_config(RunConfig, {**CONFIG, "run": str(bucket)})
    source = SourceFile(id="u", uri=str(world.base / "clips" / "a_astronaut.mp4"), identity="", licence="", consent="")
    worker = StageWorker(str(bucket), config, ("ingest",), "s")
    batch = pa.Table.from_pylist([row("ingest", source)], schema=ROW)
    s3.faults({"internal_error": 1.0}, methods=("PUT",), match="artifacts/")
    with pytest.raises(StorageError, match="run again: it goes on where it stood"):
        worker(batch)
    s3.faults({})
    assert list(Ledger(bucket).history("ingest")) == [] and scratch() == []
    told = StageWorker(str(bucket), config, ("ingest",), "s2")(batch).to_pylist()
    assert json.loads(told[0]["spec"])[1] == Outcome.DONE
    assert {r.unit for r in Ledger(bucket).history("ingest")} == {"u"}


# --- one process at a time


def hold(bucket: ObjectStore, then: str) -> subprocess.Popen[str]:
    """A process that holds the run's lease, says so, and goes on with `then`."""
    code = f"""
import os, sys, time
import pipeline.lease
pipeline.lease._RENEW_S = 0.3
from pipeline.storage import exclusive
with exclusive({str(bucket)!r}):
    print("held", flush=True)
    {then}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n", process.communicate()
    return process


def test_the_second_process_is_told_who_is_there(bucket: ObjectStore) -> None:
    process = hold(bucket, "time.sleep(60)")
    try:
        with (
            pytest.raises(ValueError, match=rf"another crosspair process works on this run \(process {process.pid} on "),
            exclusive(bucket),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()
    with exclusive(bucket):  # a dead process of this machine is known at once
        assert time.monotonic() - began < pipeline.lease._LAPSE_S / 2
    assert bucket.size(".lock") == -1


def test_a_lease_from_elsewhere_lapses_when_nobody_renews_it(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.lease, "_LAPSE_S", 2.0)
    bucket.write(".lock", json.dumps({"token": "x", "host": "elsewhere", "boot": "another", "pid": 1, "started": "1"}).encode())
    began = time.monotonic()
    with exclusive(bucket):
        assert time.monotonic() - began >= 2.0
        assert json.loads(bucket.read(".lock"))["pid"] == os.getpid()


def test_a_process_that_has_lost_its_lease_ends(bucket: ObjectStore) -> None:
    """It slept, a machine was suspended: somebody else has the run now."""
    process = hold(bucket, "time.sleep(60)")
    bucket.write(".lock", b'{"token": "somebody else"}')
    assert process.wait(timeout=20) == 3
    assert process.stderr is not None and "another process has taken over this run" in process.stderr.read()
    assert bucket.read(".lock") == b'{"token": "somebody else"}'


def test_a_lease_that_has_gone_is_lost(bucket: ObjectStore) -> None:
    """Another process took it over, finished and gave it back while the holder slept."""
    process = hold(bucket, "time.sleep(60)")
    bucket.delete([".lock"])
    assert process.wait(timeout=20) == 3
    assert process.stderr is not None and "another process has taken over this run" in process.stderr.read()


def test_a_renewal_whose_answer_was_lost_is_ones_own(bucket: ObjectStore, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.lease, "_RENEW_S", 0.2)
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))
    with exclusive(bucket):
        tag = bucket.read_tagged(".lock")[1]
        s3.faults({"lost_answer": 1.0}, methods=("PUT",), at_most=1)
        while bucket.read_tagged(".lock")[1] == tag:  # it arrived, and its answer did not
            time.sleep(0.02)
        s3.faults({"internal_error": 1.0}, methods=("PUT",))
        time.sleep(2)
        s3.calm()
        time.sleep(1)
        assert json.loads(bucket.read(".lock"))["pid"] == os.getpid()
    assert bucket.size(".lock") == -1


def test_the_lease_survives_bad_weather(bucket: ObjectStore, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.lease, "_RENEW_S", 0.05)
    s3.faults({k: 3 * v for k, v in WEATHER.items()}, seed=4, delay_s=0.05)
    with exclusive(bucket):
        time.sleep(5)
    assert bucket.size(".lock") == -1 and s3.counts().injected
