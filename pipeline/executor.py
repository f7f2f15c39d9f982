"""The executor: chains stages into one Ray Data graph. Ray schedules; what was done is in our ledger (pipeline/worker.py)."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.config import RayConfig, RunConfig
from pipeline.engine import on_gpu
from pipeline.worker import OUTCOME, ROW, StageWorker
from stages.quiet import silent_stderr

_MAX_WORKERS = 1024  # of each stage, on a cluster that grows
_ROWS_A_BLOCK = 8  # a block is what a worker takes at once, and what is done again when it dies

Progress = Callable[[str, str, str], None]
"""Called for every unit that ends: stage, outcome, reason."""


@contextmanager
def cluster(config: RayConfig) -> Iterator[Callable[[], None]]:
    """Gives a function that makes sure of a Ray to run on: the one that is there, the one at `address`, or one of our own.

    Nothing is started before the first call, so a run with nothing to do costs nothing; our own goes with the block.
    """
    started = False

    def start() -> None:
        nonlocal started
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
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
            ray.shutdown()


def run_graph(
    rows: Sequence[dict[str, str]], chain: Sequence[tuple[str, ...]], root: Path, config: RunConfig, progress: Progress
) -> Counter[tuple[str, str]]:
    """Runs rows through a chain of operators, each the home of one or more stages; (stage, outcome) counts of what was done.

    Every operator is a pool of `ray.workers` actors. All pools of a chain live at once, so each actor asks for a share of a
    CPU: a chain can never starve for lack of whole ones.
    """
    if not rows:
        return Counter()
    workers = max(1, min(config.ray.workers or int(ray.cluster_resources().get("CPU", 1)), len(rows)))
    # A user's cluster may grow when it is asked to; what is there at the start says nothing.
    grows = config.ray.address is not None and not config.ray.workers
    _configure_ray_data()
    session = uuid.uuid4().hex[:8]
    step = max(1, min(_ROWS_A_BLOCK, len(rows) // (4 * workers)))
    blocks = [pa.Table.from_pylist(list(rows[i : i + step]), schema=ROW) for i in range(0, len(rows), step)]
    graph = ray.data.from_arrow(blocks)
    for names in chain:
        gpus = 1 / config.ray.workers_per_gpu if on_gpu(names, config) else 0
        size = workers
        if gpus:  # more than there is room for would wait for ever
            size = max(1, min(size, int(ray.cluster_resources().get("GPU", 0) / gpus)))
        graph = graph.map_batches(
            StageWorker,
            batch_format="pyarrow",
            batch_size=step if gpus else None,  # Ray wants a number for operators on GPUs
            compute=ActorPoolStrategy(min_size=1, max_size=min(len(rows), _MAX_WORKERS)) if grows else ActorPoolStrategy(size=size),
            num_cpus=0.9 / len(chain),
            num_gpus=gpus or None,
            fn_constructor_args=(str(root), config, names, session),
        )
    counts: Counter[tuple[str, str]] = Counter()
    for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for item in batch.to_pylist():
            assert item["stage"] == OUTCOME, f"a row of stage {item['stage']} came out of the graph"
            stage, outcome, reason = json.loads(item["spec"])
            counts[stage, outcome] += 1
            progress(stage, outcome, reason)
    return counts


def _configure_ray_data() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1  # a block may take its rows' time limits together; our watchdog bounds each unit
    logging.getLogger("ray.data").setLevel(logging.ERROR)
