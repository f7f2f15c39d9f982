"""The executor: chains stages into one Ray Data graph. Ray schedules; what was done is in our ledger (pipeline/worker.py)."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import ray
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from pipeline.config import RayConfig, RunConfig
from pipeline.engine import on_gpu
from pipeline.interrupts import uninterrupted
from pipeline.ledger import Ledger
from pipeline.worker import OUTCOME, ROW, SUSPECT, StageUnavailable, StageWorker, quarantine, run_alone
from schemas.files import StorageError
from schemas.store import Store, clear_scratch
from stages.quiet import silent_stderr

_MAX_WORKERS = 1024  # of each stage, on a cluster that grows
_ROWS_A_GRAPH = 20_000  # Ray keeps books on every block, and a row is one

Progress = Callable[[str, str, str], None]
"""Called for every unit that ends: stage, outcome, reason."""


@contextmanager
def cluster(config: RayConfig) -> Iterator[Callable[[], None]]:
    """Gives a function that makes sure of a Ray to run on: the one that is there, the one at `address`, or one of our own; with mode
    local none is needed.

    Nothing is started before the first call, so a run with nothing to do costs nothing; our own goes with the block.
    """
    started = False

    def start() -> None:
        nonlocal started
        if ray.is_initialized() or config.mode == "local":
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        with uninterrupted():
            if config.address:
                ray.init(address=config.address, **quiet)
            else:  # "local", or RAY_ADDRESS and a Ray that somebody left running would be joined
                # Ray's native side warns of every actor pool; a user's own cluster keeps its own settings.
                os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
                cpus = config.workers or os.cpu_count() or 1
                with silent_stderr():
                    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=256 << 20, **quiet)
            started = True

    try:
        yield start
    finally:
        if started:
            with uninterrupted():
                ray.shutdown()
        clear_scratch()  # of workers that were killed


def run_graph(
    rows: Sequence[dict[str, str]], chain: Sequence[tuple[str, ...]], root: Store, config: RunConfig, progress: Progress
) -> Counter[tuple[str, str]]:
    """Runs rows through a chain of operators, each the home of one or more stages; (stage, outcome) counts of what was done.

    Streaming, all operators work at once in one graph; staged, one after the other, each with the whole machine; local, in this process.
    What is due and what is done stand in the ledger either way. A unit whose worker died under it is run again alone, when nobody else
    can be hurt.
    """
    work = _Work(root, config, progress, uuid.uuid4().hex[:8])
    if config.ray.mode == "staged":
        for names in chain:
            mine = [r for r in rows if r["stage"] in names]
            rows = [r for r in rows if r["stage"] not in names] + work.chained(mine, (names,))
    else:
        rows = work.chained(rows, chain)
    assert not rows, f"rows of stage {rows[0]['stage']} came out of the graph"
    return work.counts


@dataclass
class _Work:
    """One call of `run_graph`."""

    root: Store
    config: RunConfig
    progress: Progress
    session: str
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def chained(self, rows: Sequence[dict[str, str]], chain: Sequence[tuple[str, ...]]) -> list[dict[str, str]]:
        """Rows for stages behind the chain. Children of units that were run alone go through the chain again, which has their stages."""
        beyond: list[dict[str, str]] = []
        rows = list(rows)
        here = {name for names in chain for name in names}
        while rows:
            suspects: list[dict[str, str]] = []
            now, rows = rows[:_ROWS_A_GRAPH], rows[_ROWS_A_GRAPH:]
            for item in self._here(now, chain) if self.config.ray.mode == "local" else self._graph(now, chain):
                if item["stage"] == OUTCOME:
                    self._tell(item)
                else:
                    (suspects if item["stage"] == SUSPECT else beyond).append(item)
            for item in suspects:
                for child in self._alone(json.loads(item["spec"])):
                    (rows if child["stage"] in here else beyond).append(child)
            Ledger(self.root).compact()  # every unit has left a segment
        return beyond

    def _tell(self, item: dict[str, str]) -> None:
        stage, outcome, reason = json.loads(item["spec"])
        self.counts[stage, outcome] += 1
        self.progress(stage, outcome, reason)

    def _graph(self, rows: Sequence[dict[str, str]], chain: Sequence[tuple[str, ...]]) -> Iterator[dict[str, str]]:
        """Every operator is a pool of up to `ray.workers` actors. All pools of a chain live at once, so each actor asks for a share of
        a CPU: a chain can never starve for lack of whole ones.

        Each row is a block: a worker takes one at a time, the next goes to whoever is free, and a worker that dies has one to do again.
        """
        config = self.config
        # A user's cluster may grow when it is asked to; what is there at the start says nothing.
        grows = config.ray.address is not None and not config.ray.workers
        # Those that have come furthest go first, past the workers of earlier stages: all have something to do from the start.
        place = {name: k for k, names in enumerate(chain) for name in names}
        rows = sorted(rows, key=lambda r: -place[r["stage"]])
        graph = ray.data.from_items(rows, override_num_blocks=len(rows))
        _configure(graph.context)
        for names in chain:
            most = _MAX_WORKERS if grows else max(1, config.ray.workers or int(ray.cluster_resources().get("CPU", 1)))
            gpus = 1 / config.ray.workers_per_gpu if on_gpu(names, config) else 0
            if gpus and not grows:  # more than there is room for would wait for ever
                room = ray.cluster_resources().get("GPU", 0) / gpus / sum(on_gpu(n, config) for n in chain)
                most = max(1, min(most, int(room)))
            few = min(most, len(rows))
            if names == chain[0]:  # further on, one row may have become many: a film has hundreds of shots
                most = few
            graph = graph.map_batches(
                StageWorker,
                batch_format="pyarrow",
                batch_size=1,
                compute=ActorPoolStrategy(min_size=1 if grows else few, max_size=most),
                num_cpus=0.9 / len(chain),
                num_gpus=gpus or None,
                fn_constructor_args=(str(self.root), config, names, self.session),
            )
        with _what_ends_a_run():
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from batch.to_pylist()

    def _here(self, rows: Sequence[dict[str, str]], chain: Sequence[tuple[str, ...]]) -> Iterator[dict[str, str]]:
        """Without Ray: each row goes through the whole chain before the next, and every unit is told of as it ends."""
        workers = [StageWorker(str(self.root), self.config, names, self.session) for names in chain]

        def through(item: dict[str, str], place: int) -> Iterator[dict[str, str]]:
            if place == len(workers) or item["stage"] == OUTCOME:
                yield item
                return
            for child in workers[place](pa.Table.from_pylist([item], schema=ROW)).to_pylist():
                yield from through(child, place + 1)

        for item in rows:
            yield from through(item, 0)

    def _alone(self, item: dict[str, str]) -> list[dict[str, str]]:
        """A suspect by itself, in a fresh process: its children, or its record as one that kills or hangs whoever touches it.

        A worker may also be killed from outside, by the machine when its memory is short, say; so one more death is borne.
        """
        stage, config = item["stage"], self.config
        names, ended, died = (stage,), [], ""
        gpus = 1 / config.ray.workers_per_gpu if on_gpu(names, config) else 0
        task = ray.remote(num_cpus=0.9, num_gpus=gpus, max_retries=0)(run_alone)
        for _ in range(config.limits.attempts):
            try:
                with _what_ends_a_run():
                    told: list[dict[str, str]] = ray.get(task.remote(str(self.root), config, item, self.session, StageWorker))
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as e:
                died = type(e).__name__
                ended.append(time.time())
                continue
            self._tell(told[0])
            return told[1:]
        self._tell(quarantine(self.root, config, item, self.session, ended, died))
        return []


@contextmanager
def _what_ends_a_run() -> Iterator[None]:
    """What a worker lets out ends the run as what it is; Ray wraps it."""
    try:
        yield
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, StorageError | StageUnavailable):
            raise e.cause from None
        raise


def _configure(context: DataContext) -> None:
    context.target_max_block_size = 1  # byte: every row that comes out is a block, too
    context.max_tasks_in_flight_per_actor = 1  # none waits for a busy worker while others are free
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # all busy
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # a block may take its rows' time limits together; our watchdog bounds each unit
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # whatever fails there is raised too
