"""The engine of a run: its weights, the device it runs on, and the object that a worker makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from pipeline.config import RunConfig

if TYPE_CHECKING:  # what an engine needs is imported where it is needed: meshwarp runs without ONNX Runtime
    from stages.reenact import Reenactor


def with_weights(config: RunConfig, base: Path, *, scratch: Path, say: Callable[[str], None]) -> RunConfig:
    """The config with the engine's graphs ready, and their digests, which the fingerprints hold. Nothing is rendered with other files.

    Raises:
        ValueError: weights that are missing, damaged, not those that `digests` pins, or of a licence that the run forbids.
    """
    settings = config.reenactor
    if settings.engine == "meshwarp":
        return config
    from pipeline.catalogue import NETWORKS, forbid_non_commercial, of_layout, sha256_of
    from pipeline.models_folder import Folder
    from pipeline.weights import resolve
    from stages.landmarks203 import Landmarks203

    folder, options = base / settings.models, settings.liveportrait
    landmarks = base / settings.landmarks if settings.landmarks else Folder(folder).find(of_layout("optional")["landmark"])
    networks = [role for role in NETWORKS if role != "stitching" or options.stitching]
    weights = resolve(folder, scratch=scratch, networks=networks, precision=options.precision, say=say)
    digests, used = weights.digests, list(weights.sources)
    if landmarks is not None:
        Landmarks203(landmarks)  # or its error, now
        digests, used = digests | {"landmark": sha256_of(landmarks)}, [*used, landmarks]
    if not config.weights.allow_non_commercial:
        forbid_non_commercial(used)
    for role, pinned in settings.digests.items():
        if digests.get(role) != pinned:
            found = digests.get(role, "no such file")
            raise ValueError(f"{folder}: reenactor.digests pins {role} to {pinned}, found {found}; put that file back, or remove the pin")
    ready = replace(settings, models=str(weights.folder), landmarks=str(landmarks or ""), digests=dict(sorted(digests.items())))
    return replace(config, reenactor=ready)


def frame_seconds(stage: str, config: RunConfig) -> float:
    """What a unit may take for each frame of its clip, beyond limits.unit_s: full-width networks draw one in about 10 s of a CPU core."""
    slow = config.reenactor.engine == "liveportrait" and not on_gpu([stage], config)
    return {"motion": 5.0, "reenact": 60.0}.get(stage, 0.0) if slow else 0.0


def on_gpu(names: Sequence[str], config: RunConfig) -> bool:
    """Whether an operator with these stages asks for a share of a GPU."""
    settings = config.reenactor
    return settings.engine == "liveportrait" and settings.liveportrait.provider == "cuda" and bool({"motion", "reenact"} & set(names))


def on_this_cluster(config: RunConfig, say: Callable[[str], None]) -> RunConfig:
    """The config with the device that the engine will run on, found out on a worker; tells when it is not what one would wish for.

    Raises:
        ValueError: CUDA is asked for and the cluster cannot give it.
    """
    settings = config.reenactor.liveportrait
    if config.reenactor.engine != "liveportrait" or settings.provider == "cpu":
        return config
    if ray.cluster_resources().get("GPU", 0):
        share = 1 / config.ray.workers_per_gpu
        provider, why = ray.get(ray.remote(num_cpus=0, num_gpus=share)(_choose_provider).remote())
    else:
        provider, why = "cpu", "this Ray cluster has no GPU"
    if settings.provider == "cuda" and provider == "cpu":
        raise ValueError(f"reenactor.liveportrait.provider is cuda, and {why}")
    if why:
        say(f"liveportrait runs on the CPU: {why}")
    return replace(config, reenactor=replace(config.reenactor, liveportrait=replace(settings, provider=provider)))


def _choose_provider() -> tuple[str, str]:
    from stages.liveportrait_graphs import CUDA, choose_provider

    provider, why = choose_provider()
    return ("cuda" if provider == CUDA else "cpu"), why


def build_engine(config: RunConfig) -> Reenactor:
    """The reenactor that the config names, with its weights and its device."""
    settings = config.reenactor
    if settings.engine == "meshwarp":
        from stages.meshwarp import MeshWarp

        return MeshWarp(settings.meshwarp)
    from stages.liveportrait import LivePortrait
    from stages.liveportrait_graphs import CPU, CUDA, choose_provider

    cpus = os.cpu_count() or 1
    threads = settings.liveportrait.threads or max(1, cpus // (config.ray.workers or cpus))
    provider, why = (CPU, "") if settings.liveportrait.provider == "cpu" else choose_provider()
    if settings.liveportrait.provider == "cuda" and provider != CUDA:
        raise ValueError(f"reenactor.liveportrait.provider is cuda, and {why}")
    landmarks = Path(settings.landmarks) if settings.landmarks else None
    return LivePortrait(settings.liveportrait, Path(settings.models), landmarks, provider=provider, threads=threads)
