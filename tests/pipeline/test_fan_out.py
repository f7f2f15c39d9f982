"""Fan-out: one row becomes many. They are spread over workers, and none is lost or done twice, whoever dies on the way."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import executor
from pipeline.config import LimitsConfig, RayConfig, ReenactorConfig, RunConfig, fingerprints
from pipeline.engine import with_mode
from pipeline.executor import run_graph
from pipeline.ledger import Ledger, Record, sweep
from pipeline.worker import StageWorker, row
from schemas.ids import source_id
from schemas.store import DiskStore
from schemas.units import Shot, SourceFile
from stages.liveportrait_settings import LivePortraitConfig
from stages.outputs import Outputs

CHAIN = (("ingest",), ("faces",))


def film(what: str, shots: int) -> SourceFile:
    return SourceFile(id=source_id(f"/{what}"), uri=f"/{what}", identity=what, licence=str(shots), consent="")


def cut(source: SourceFile, out: Outputs) -> tuple[dict[str, Any], list[Shot]]:
    out.write("timing.npz", b"t")
    if source.identity == "dies once in hand":
        die_once(out.run.here / "died-in-hand")
    if source.identity == "slow":
        time.sleep(1.0)
    if source.identity == "waits for a shot":
        wait_for(lambda: list(out.run.here.glob("worker-*")))
    about: dict[str, Any] = {"source": source, "content": "", "folder": out.folder, "has_sound": False}
    return {"at": time.time()}, [Shot(id=f"{source.id}-{n:03d}", first_frame=n, last_frame=n, **about) for n in range(int(source.licence))]


def follow(shot: Shot, out: Outputs) -> tuple[dict[str, Any], list[Any]]:
    began = time.time()
    assert (out.run.here / shot.folder / "timing.npz").is_file()
    if shot.source.identity == "kills" and shot.first_frame == 3:
        os._exit(1)
    if shot.source.identity == "waits for three workers":
        (out.run.here / f"worker-{os.getpid()}").touch()
        wait_for(lambda: len(list(out.run.here.glob("worker-*"))) >= 3)
    return {"worker": os.getpid(), "began": began}, []


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + 200
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def die_once(flag: Path, after_s: float = 0.0) -> None:
    if not flag.exists():
        flag.touch()
        if after_s:
            threading.Timer(after_s, os._exit, (1,)).start()
        else:
            os._exit(1)


class FaultyWorker(StageWorker):
    """Dies where its unit says; once even when the unit is done and recorded, while the rows of its children go out."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = super().__call__(batch)
        if any("dies once with the rows" in spec for spec in batch["spec"].to_pylist()) and "ingest" in self._names:
            die_once(self._root.here / "died-with-rows", after_s=0.05)
        return rows

    def _stage(self, name: str) -> Callable[..., Any]:
        return {"ingest": cut, "faces": follow}[name]


@pytest.fixture(autouse=True)
def faulty(monkeypatch: pytest.MonkeyPatch, ray_session: None) -> Iterator[None]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(executor, "StageWorker", FaultyWorker)
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def config(**ray: Any) -> RunConfig:
    return RunConfig(run="run", clips="clips", limits=LimitsConfig(unit_s=500.0), ray=RayConfig(**ray))


def records(root: Path, stage: str) -> dict[str, Record]:
    return Ledger(root).read(stage, fingerprints(config())[stage])


def told(root: Path, config: RunConfig, *films: SourceFile) -> Counter[tuple[str, str]]:
    """Runs films through the chain; how many units were told of, by stage and outcome."""
    seen: Counter[tuple[str, str]] = Counter()
    counts = run_graph([row("ingest", f) for f in films], CHAIN, root, config, lambda stage, outcome, _: seen.update([(stage, outcome)]))
    assert counts == seen
    return seen


def test_the_shots_of_one_film_are_spread_over_workers(tmp_path: Path) -> None:
    """Each waits until three workers have one: were they one worker's, nobody would move. Another film waits for the first shot."""
    films = [film("waits for three workers", 12), film("waits for a shot", 0)]
    assert told(tmp_path, config(workers=3), *films) == {("ingest", "done"): 2, ("faces", "done"): 12}
    assert len({r.data["worker"] for r in records(tmp_path, "faces").values()}) == 3


def test_staged_no_stage_begins_before_the_one_before_it_has_ended(tmp_path: Path) -> None:
    """The same counts, though one film takes longer than the others' shots."""
    done = told(tmp_path, config(workers=2, mode="staged"), film("slow", 2), film("good", 3), film("kills", 4))
    assert done == {("ingest", "done"): 3, ("faces", "done"): 8, ("faces", "quarantined"): 1}
    ended = max(r.data["at"] for r in records(tmp_path, "ingest").values())
    assert ended < min(r.data["began"] for r in records(tmp_path, "faces").values() if r.outcome == "done")


@pytest.mark.parametrize(
    ("mode", "provider", "gpus", "staged"),
    [
        ("auto", "cuda", 1, True),
        ("auto", "cuda", 2, False),
        ("auto", "cpu", 0, False),
        ("streaming", "cuda", 1, False),
        ("staged", "cuda", 8, True),
    ],
)
def test_auto_is_staged_where_there_are_fewer_gpus_than_stages_that_run_on_one(mode: str, provider: Any, gpus: int, staged: bool) -> None:
    engine = ReenactorConfig(engine="liveportrait", models="m", liveportrait=LivePortraitConfig(provider=provider))
    said: list[str] = []
    asked = replace(config(mode=mode), reenactor=engine)
    given = with_mode(asked, (("motion",), ("reenact",), ("regions",)), gpus, said.append)
    assert (given.ray.mode == "staged") == staged
    assert len(said) == (given != asked) and all("2 stages run on a GPU, and this Ray cluster has 1" in s for s in said)


def test_workers_that_die_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    """In hand, with the record on disk and the rows on their way out, and in a shot that kills whoever touches it."""
    films = [film("dies once in hand", 5), film("dies once with the rows", 50), film("kills", 5), film("good", 5)]
    done = told(tmp_path, config(workers=2), *films)
    assert done == {("ingest", "done"): 4, ("faces", "done"): 64, ("faces", "quarantined"): 1}
    assert (tmp_path / "died-in-hand").exists() and (tmp_path / "died-with-rows").exists()
    shots = {f"{f.id}-{n:03d}" for f in films for n in range(int(f.licence))}
    assert {u for u, r in records(tmp_path, "faces").items() if r.outcome == "done"} == shots - {f"{films[2].id}-003"}
    assert len(list(Ledger(tmp_path).history("faces"))) == len(shots)  # of the film's first attempt or of its second
    twice = Counter(p.parent.name for p in (tmp_path / "artifacts/ingest").glob("*/*/*"))
    assert {unit for unit, n in twice.items() if n > 1} == {films[0].id, films[1].id}
    sweep(DiskStore(tmp_path), {"ingest": records(tmp_path, "ingest")})
    winners = {r.folder for r in records(tmp_path, "ingest").values()}
    assert {str(p.relative_to(tmp_path)) for p in (tmp_path / "artifacts/ingest").glob("*/*/*")} == winners
    assert not list(tmp_path.glob("ledger/*/open/*"))
