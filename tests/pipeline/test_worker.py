"""A worker: whatever a unit does, it costs only itself, and it has an outcome."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from pipeline import worker
from pipeline.config import LimitsConfig, RayConfig, ReenactorConfig, RunConfig, fingerprints
from pipeline.executor import run_graph
from pipeline.ledger import Ledger, Record
from pipeline.worker import OUTCOME, ROW, SUSPECT, StageUnavailable, StageWorker, row, run_alone, unit_seconds
from schemas.ids import pair_id, source_id
from schemas.outcomes import Outcome, Rejection
from schemas.store import DiskStore
from schemas.units import Clip, Pair, Performance, PortraitUnit, Shot, SourceFile
from stages.liveportrait_settings import LivePortraitConfig
from stages.outputs import Outputs
from stages.reenact import MotionStage

REPO = Path(__file__).parents[2]


def source(what: str, n: int = 0) -> SourceFile:
    return SourceFile(id=source_id(f"/{what}/{n}"), uri=f"/{what}/{n}", identity=what, licence="", consent="")


def act(unit: SourceFile, out: Outputs) -> tuple[dict[str, Any], list[Shot]]:
    """A stage that does what its unit's identity says."""
    out.write("begun.bin", b"x")
    match unit.identity:
        case "reject":
            raise Rejection("no_face", "no face here", {"looks": 3.0})
        case "raise":
            raise KeyError("boom")
        case "raise_once":
            flag = Path(str(out.run)) / "raised_once"
            if not flag.exists():
                flag.touch()
                raise RuntimeError("the first time only")
        case "stale":
            if not (Path(str(out.run)) / "passes").exists():
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), unit.uri)
        case "slow_tool":
            raise subprocess.TimeoutExpired("ffmpeg", 1.0)
        case "glutton":
            kept = []
            while True:
                kept.append(np.ones(10_000_000))
        case "exit":
            os._exit(1)
        case "hang":
            time.sleep(3600)
        case "parent":
            shot = Shot(id=f"shot-of-{unit.id}", source=unit, content="", first_frame=0, last_frame=1, folder=out.folder, has_sound=False)
            return {}, [shot]
    return {"said": unit.identity}, []


def config(**limits: float) -> RunConfig:
    return RunConfig(run="run", clips="clips", limits=LimitsConfig(**limits), ray=RayConfig(workers=1))  # type: ignore[arg-type]


def records(root: Path, stage: str = "ingest") -> dict[str, Record]:
    return Ledger(root).read(stage, fingerprints(config())[stage])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "build_stage", lambda name, config: act)


def work(root: Path, *units: SourceFile, session: str = "s") -> list[dict[str, str]]:
    batch = pa.Table.from_pylist([row("ingest", u) for u in units], schema=ROW)
    result: list[dict[str, str]] = StageWorker(str(root), config(), ("ingest",), session)(batch).to_pylist()
    return result


def one(root: Path, what: str) -> Record:
    work(root, source(what))
    return records(root)[source(what).id]


@pytest.mark.usefixtures("fake")
class TestInProcess:
    def test_done_names_the_winning_attempt(self, tmp_path: Path) -> None:
        r = one(tmp_path, "good")
        assert (r.outcome, r.reason, r.attempts, r.data["said"]) == (Outcome.DONE, "", 1, "good")
        assert (tmp_path / r.folder / "begun.bin").is_file() and set(r.digests) == {"begun.bin"}

    def test_a_rejection_keeps_reason_and_scores_and_is_not_tried_again(self, tmp_path: Path) -> None:
        r = one(tmp_path, "reject")
        assert (r.outcome, r.reason, r.message, r.attempts, r.data["looks"]) == (Outcome.REJECTED, "no_face", "no face here", 1, 3.0)

    def test_an_error_is_tried_again_and_then_final(self, tmp_path: Path) -> None:
        r = one(tmp_path, "raise")
        assert (r.outcome, r.reason, r.attempts) == (Outcome.FAILED, "error", 2)
        assert "KeyError" in r.message and "boom" in r.message and "test_worker.py:" in r.message

    def test_an_error_that_passes_is_forgiven(self, tmp_path: Path) -> None:
        r = one(tmp_path, "raise_once")
        assert (r.outcome, r.attempts) == (Outcome.DONE, 2)

    def test_a_tool_that_takes_too_long_is_a_timeout(self, tmp_path: Path) -> None:
        r = one(tmp_path, "slow_tool")
        assert (r.outcome, r.reason) == (Outcome.FAILED, "timeout")

    def test_what_failed_leaves_no_artifact(self, tmp_path: Path) -> None:
        work(tmp_path, source("raise"), source("reject"), source("raise_once"))
        left = {p.parent.name for p in (tmp_path / "artifacts/ingest").glob("*/*/*")}
        assert left == {source("raise_once").id}

    def test_one_bad_unit_leaves_its_batch_alone(self, tmp_path: Path) -> None:
        told = work(tmp_path, source("good"), source("raise"), source("reject"), source("good", 1))
        assert [r["stage"] for r in told] == [OUTCOME] * 4
        assert {r.outcome for r in records(tmp_path).values()} == {"done", "failed", "rejected"}
        assert not list((tmp_path / "ledger/ingest/open").iterdir())

    def test_children_are_rows_of_the_next_stage(self, tmp_path: Path) -> None:
        told = work(tmp_path, source("parent"))
        assert [r["stage"] for r in told] == [OUTCOME, "faces"]
        (r,) = records(tmp_path).values()
        assert r.children[0]["id"] == told[1]["unit"]
        assert worker.read_spec(Shot, told[1]["spec"]).source == source("parent")

    def test_rows_of_other_stages_pass_through(self, tmp_path: Path) -> None:
        batch = pa.Table.from_pylist([row("portraits", source("good"))], schema=ROW)
        assert StageWorker(str(tmp_path), config(), ("ingest",), "s")(batch).equals(batch)

    def test_a_unit_that_killed_its_worker_is_not_touched_again_among_others(self, tmp_path: Path) -> None:
        StageWorker(str(tmp_path), config(), ("ingest",), "s")._writers["ingest"].begin(source("good").id, "s")
        told = work(tmp_path, source("good"), source("good", 1))
        assert [r["stage"] for r in told] == [SUSPECT, OUTCOME]
        assert json.loads(told[0]["spec"]) == row("ingest", source("good"))
        assert not (tmp_path / "artifacts" / "ingest" / source("good").id[:2] / source("good").id).exists()
        assert len(list((tmp_path / "ledger/ingest/open").iterdir())) == 1  # the death, no more

    def test_a_suspect_that_is_well_alone_is_done_and_its_death_forgotten(self, tmp_path: Path) -> None:
        StageWorker(str(tmp_path), config(), ("ingest",), "s")._writers["ingest"].begin(source("parent").id, "s")
        told = run_alone(str(tmp_path), config(), row("ingest", source("parent")), "s", StageWorker)
        assert [r["stage"] for r in told] == [OUTCOME, "faces"]
        assert records(tmp_path)[source("parent").id].outcome == Outcome.DONE
        assert not list((tmp_path / "ledger/ingest/open").iterdir())

    def test_deaths_of_an_earlier_session_do_not_count(self, tmp_path: Path) -> None:
        StageWorker(str(tmp_path), config(), ("ingest",), "earlier")._writers["ingest"].begin(source("good").id, "earlier")
        assert [r["stage"] for r in work(tmp_path, source("good"))] == [OUTCOME]

    def test_a_unit_that_takes_all_memory_fails_by_itself(self, tmp_path: Path) -> None:
        limits = config(memory_gb=0.5)
        batch = pa.Table.from_pylist([row("ingest", source("glutton")), row("ingest", source("good"))], schema=ROW)
        StageWorker(str(tmp_path), limits, ("ingest",), "s")(batch)
        r = records(tmp_path)[source("glutton").id]
        assert (r.outcome, r.reason) == (Outcome.FAILED, "out_of_memory") and "0.5 GB" in r.message
        assert records(tmp_path)[source("good").id].outcome == Outcome.DONE
        assert np.ones(100_000_000).nbytes == 800_000_000  # the limit went with the unit

    def test_a_stage_that_cannot_be_built_stops_the_run_and_blames_no_unit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> Callable[..., Any]:
            raise FileNotFoundError("no weights")

        monkeypatch.setattr(worker, "build_stage", broken)
        with pytest.raises(StageUnavailable, match=r"^[^:]+: stage ingest cannot begin its work there: FileNotFoundError: no weights$"):
            one(tmp_path, "good")
        assert records(tmp_path, "ingest") == {}

    def test_what_may_be_well_in_a_minute_is_tried_more_often(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        r = one(tmp_path, "stale")
        assert (r.outcome, r.reason, r.attempts) == (Outcome.FAILED, "transient", 5) and "Stale file handle" in r.message
        assert pauses == [1, 4, 16, 60]
        (tmp_path / "passes").touch()
        r = one(tmp_path, "stale")
        assert r.outcome == Outcome.DONE

    def test_a_decoder_that_says_the_same_is_not_the_machine(self) -> None:
        assert worker._is_transient(OSError(errno.EIO, "Input/output error"))
        assert not worker._is_transient(av.error.OSError(errno.EIO, "Input/output error"))
        assert not worker._is_transient(FileNotFoundError(errno.ENOENT, "gone")) and not worker._is_transient(ValueError())


@pytest.mark.parametrize("what", ["exit", "hang"])
def test_a_death_leaves_its_unit_open_and_nothing_else(tmp_path: Path, what: str) -> None:
    """In a process of its own: the unit before it is not blamed, though its record was lost with the worker."""
    code = (
        "import sys; from pathlib import Path; import test_worker as t; from pipeline import worker\n"
        "worker.build_stage = lambda name, config: t.act\n"
        "import pyarrow as pa\n"
        "c = t.config(unit_s=1.0)\n"
        f"rows = [t.row('ingest', t.source('good')), t.row('ingest', t.source({what!r}))]\n"
        "t.StageWorker(sys.argv[1], c, ('ingest',), 's')(pa.Table.from_pylist(rows, schema=t.ROW))\n"
    )
    path = os.pathsep.join([str(REPO), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert [p.name.split("-")[0] for p in (tmp_path / "ledger/ingest/open").iterdir()] == [source(what).id]


@pytest.mark.usefixtures("ray_session")
def test_deaths_and_hangs_on_ray_cost_only_their_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker for all: those that come to it with a killer are done, not blamed."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class FaultyWorker(StageWorker):
        def _stage(self, name: str) -> Callable[..., Any]:
            return act

    monkeypatch.setattr("pipeline.executor.StageWorker", FaultyWorker)
    units = [source("good", n) for n in range(18)]
    units[5:5] = [source("exit")]
    units[10:10] = [source("raise")]
    units[14:14] = [source("hang")]
    units.append(source("reject"))
    seen: list[tuple[str, str]] = []
    counts = run_graph(
        [row("ingest", u) for u in units],
        (("ingest",),),
        tmp_path,
        config(unit_s=3.0),
        lambda stage, outcome, reason: seen.append((outcome, reason)),
    )
    outcomes = {u.uri: records(tmp_path)[u.id] for u in units}
    assert {uri: (r.outcome, r.reason) for uri, r in outcomes.items() if r.outcome != "done"} == {
        "/exit/0": ("quarantined", "worker_died"),
        "/hang/0": ("quarantined", "hung"),
        "/raise/0": ("failed", "error"),
        "/reject/0": ("rejected", "no_face"),
    }
    assert sum(counts.values()) == len(seen) == len(units)
    killer, sleeper = outcomes["/exit/0"], outcomes["/hang/0"]
    assert f"crosspair replay {tmp_path} {killer.unit} --stage ingest" in killer.message and killer.attempts == 3
    assert sleeper.attempts == 3 and sleeper.message.count(":") >= 6 and sleeper.seconds > 6  # three times of day
    assert not list((tmp_path / "ledger/ingest/open").iterdir())


def performance(what: str = "good") -> Performance:
    """A clip of ten seconds that two portraits wait for."""
    nothing: dict[str, Any] = {"content": "", "folder": "", "digests": {}, "scores": {}}
    clip = Clip(
        **nothing, id="c", shot="s", source=source(what), track=0, first_frame=0, last_frame=9, source_fps=25, frames=250, fps=25,
        size_px=64, crop=(0, 0, 64), still_frame=0, has_audio=False, still_scores={},
    )  # fmt: skip
    portraits = [PortraitUnit(**nothing, id=p, source=source("y"), clip="", size_px=64, image="", track="", frame=0) for p in "pq"]
    return Performance(id="c", clip=clip, portraits=portraits)


@pytest.mark.parametrize(("what", "outcome", "pairs"), [("good", "done", 2), ("reject", "rejected", 0), ("raise", "failed", 0)])
def test_the_pairs_that_waited_for_a_motion_go_on_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, outcome: str, pairs: int
) -> None:
    """And the record of the motion names none of them: which pairs are due is the plan's to say, at each time."""

    class Engine:
        ran_on, version = "cpu", 1

        def motion(self, clip: object) -> Engine:
            act(unit.clip.source, Outputs(DiskStore(tmp_path), "begun"))
            return self

        def encode(self) -> bytes:
            return b"motion"

    monkeypatch.setattr("stages.reenact.view_of", lambda clip, root: clip)
    monkeypatch.setattr(worker, "build_stage", lambda name, config: MotionStage(Engine()))  # type: ignore[arg-type]
    unit = performance(what)
    batch = pa.Table.from_pylist([row("motion", unit)], schema=ROW)
    told = StageWorker(str(tmp_path), config(), ("motion",), "s")(batch).to_pylist()
    assert [r["stage"] for r in told] == [OUTCOME] + ["reenact"] * pairs
    (record,) = records(tmp_path, "motion").values()
    assert (record.unit, record.outcome, record.kind, record.parent, record.source_uri) == ("c", outcome, "clip", "s", f"/{what}/0")
    assert record.children == []
    made = [Pair(id=pair_id("c", p.id), clip=unit.clip, portrait=p, motion_folder=record.folder) for p in unit.portraits]
    assert [worker.read_spec(Pair, r["spec"]) for r in told[1:]] == made[:pairs]


def test_frames_that_a_cpu_draws_slowly_are_given_their_time() -> None:
    unit = performance()
    pair = Pair(id="q", clip=unit.clip, portrait=unit.portraits[0], motion_folder="")

    def seconds(reenactor: ReenactorConfig, stage: str, spec: Any) -> float:
        return unit_seconds(stage, spec, RunConfig(run="run", clips="clips", reenactor=reenactor))

    cpu = ReenactorConfig(engine="liveportrait", models="m", liveportrait=LivePortraitConfig(provider="cpu"))
    cuda = ReenactorConfig(engine="liveportrait", models="m", liveportrait=LivePortraitConfig(provider="cuda"))
    assert seconds(ReenactorConfig(), "reenact", pair) == seconds(cuda, "reenact", pair) == seconds(cpu, "regions", pair) == 900
    assert seconds(cpu, "reenact", pair) > 250 * 20 and seconds(cpu, "motion", unit) > 900
