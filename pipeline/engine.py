"""The engine of a run: its weights, the device it runs on, and the object that a worker makes of them."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ray

from pipeline.config import RunConfig
from schemas.ids import sha256_of

if TYPE_CHECKING:  # what an engine needs is imported where it is needed: meshwarp runs without ONNX Runtime
    from stages.reenact import Reenactor


_PATIENCE_S = 30.0


def with_weights(config: RunConfig, base: Path, *, scratch: Path, say: Callable[[str], None]) -> RunConfig:
    """The config with the engine's graphs ready, and their digests, which the fingerprints hold. Nothing is rendered with other files.

    Raises:
        ValueError: weights that are missing, damaged, not those that `digests` pins, or of a licence that the run forbids.
    """
    settings = config.reenactor
    if settings.engine == "meshwarp":
        return config
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError("reenactor.engine liveportrait needs ONNX Runtime: install crosspair[cpu], or crosspair[gpu] (docs/models.md)")
    from pipeline.catalogue import NETWORKS, forbid_non_commercial, of_layout
    from pipeline.models_folder import Folder
    from pipeline.weights import resolve
    from stages.landmarks203 import Landmarks203

    folder, options = (base / settings.models).absolute(), settings.liveportrait
    landmarks = (base / settings.landmarks).absolute() if settings.landmarks else Folder(folder).find(of_layout("optional")["landmark"])
    networks = [role for role in NETWORKS if role != "stitching" or options.stitching]
    weights = resolve(folder, scratch=scratch, networks=networks, precision=options.precision, say=say)
    if weights.layout == "onnx" and options.precision == "fp16" and weights.digests.get("precision") != "fp16":
        say(f"{folder}: ONNX graphs are used as they stand; reenactor.liveportrait.precision is for .pth files and changes nothing")
    digests, used = weights.digests, list(weights.sources)
    files = [weights.folder / of_layout("onnx")[role].file for role in networks]
    if landmarks is not None:
        Landmarks203(landmarks)  # or its error, now
        digests, used, files = digests | {"landmark": sha256_of(landmarks)}, [*used, landmarks], [*files, landmarks]
    if not config.weights.allow_non_commercial:
        forbid_non_commercial(used)
    pins = settings.digests | ({"landmark": "no such file"} if settings.digests and "landmark" not in settings.digests else {})
    for role, pinned in pins.items():
        if (found := digests.get(role, "no such file")) != pinned:
            raise ValueError(
                f"{folder}: reenactor.digests pins {role} to {pinned}, found {found}; put that back, or mend or remove the pin"
            )
    ready = replace(
        settings,
        models=str(weights.folder.absolute()),
        landmarks=str(landmarks or ""),
        digests=dict(sorted(digests.items())),
        files={path.name: sha256_of(path) for path in files},
    )
    return replace(config, reenactor=ready)


def with_expressions(config: RunConfig, base: Path) -> RunConfig:
    """The config with the digest of the expression network, if it names one, which the fingerprint of regions holds.

    Raises:
        ValueError: a file that is missing, holds no such network, or is not the one that `controls.sha256` pins.
    """
    settings = config.controls
    if not settings.expressions:
        return config
    from stages.expression import Expressions

    path = (base / settings.expressions).absolute()
    Expressions(path)  # or its error, now
    found = sha256_of(path)
    if settings.sha256 and settings.sha256 != found:
        raise ValueError(f"{path}: controls.sha256 pins {settings.sha256}, found {found}; put that file back, or mend or remove the pin")
    return replace(config, controls=replace(settings, expressions=str(path), sha256=found))


def frame_seconds(stage: str, config: RunConfig) -> float:
    """What a unit may take for each frame of its clip, beyond limits.unit_s: full-width networks draw one in about 10 s of a CPU core."""
    slow = config.reenactor.engine == "liveportrait" and not on_gpu([stage], config)
    return {"motion": 5.0, "reenact": 60.0}.get(stage, 0.0) if slow else 0.0


def on_gpu(names: Sequence[str], config: RunConfig) -> bool:
    """Whether an operator with these stages asks for a share of a GPU."""
    settings = config.reenactor
    return settings.engine == "liveportrait" and settings.liveportrait.provider == "cuda" and bool({"motion", "reenact"} & set(names))


def with_mode(config: RunConfig, chain: Sequence[Sequence[str]], gpus: float, say: Callable[[str], None]) -> RunConfig:
    """The config with `ray.mode` staged, if that is left to us and the chain's operators cannot have a GPU each; tells so."""
    wanted = sum(on_gpu(names, config) for names in chain)
    if config.ray.mode != "auto" or gpus >= wanted:
        return config
    say(f"one stage at a time: {wanted} stages run on a GPU, and this Ray cluster has {gpus:g} (ray.mode streaming: all at once)")
    return replace(config, ray=replace(config.ray, mode="staged"))


def on_this_cluster(config: RunConfig, chain: Sequence[Sequence[str]], say: Callable[[str], None]) -> RunConfig:
    """The config with the device that the engine will run on, found out on a worker, and with the chain's mode; tells when they are not
    what one would wish for.

    Raises:
        ValueError: CUDA is asked for and the cluster cannot give it.
    """
    settings = config.reenactor.liveportrait
    if config.reenactor.engine != "liveportrait" or settings.provider == "cpu":
        return config
    local = config.ray.mode == "local"
    if local:
        provider, why = _choose_provider()
    elif ray.cluster_resources().get("GPU", 0):
        share = 1 / config.ray.workers_per_gpu
        answer = ray.remote(num_cpus=0, num_gpus=share)(_choose_provider).remote()
        if not ray.wait([answer], timeout=_PATIENCE_S)[0]:
            say("waiting for a share of a GPU: others hold all that this Ray cluster has; reenactor.liveportrait.provider cpu needs none")
        provider, why = ray.get(answer)
    else:
        provider, why = "cpu", "this Ray cluster has no GPU"
    if settings.provider == "cuda" and provider == "cpu":
        raise ValueError(f"reenactor.liveportrait.provider is cuda, and {why}")
    if why:
        say(f"liveportrait runs on the CPU: {why}")
    config = replace(config, reenactor=replace(config.reenactor, liveportrait=replace(settings, provider=provider)))
    return config if local else with_mode(config, chain, ray.cluster_resources().get("GPU", 0), say)


def _choose_provider() -> tuple[Literal["cuda", "cpu"], str]:
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

    # On a Ray of our own the workers share this machine; on a cluster nobody knows how many are beside this one.
    workers = 1 if config.ray.mode == "local" else config.ray.workers
    share = machine_cpus() // workers if workers and not config.ray.address else 1
    threads = settings.liveportrait.threads or max(1, share)
    provider, why = (CPU, "") if settings.liveportrait.provider == "cpu" else choose_provider()
    if settings.liveportrait.provider == "cuda" and provider != CUDA:
        raise ValueError(f"reenactor.liveportrait.provider is cuda, and {why}")
    landmarks = Path(settings.landmarks) if settings.landmarks else None
    return LivePortrait(settings.liveportrait, Path(settings.models), landmarks, provider=provider, threads=threads, digests=settings.files)


def machine_cpus() -> int:
    """That this process may use: a container has fewer than its machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    allowed, period = quota.read_text().split()[:2] if quota.is_file() else ("max", "1")
    return cpus if allowed == "max" else max(1, min(cpus, math.ceil(int(allowed) / int(period))))
