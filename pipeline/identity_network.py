"""The identity network of a run: the user's file, checked before anything else, and its digest, which the fingerprint holds."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from pipeline.catalogue import forbid_non_commercial
from pipeline.config import RunConfig
from pipeline.models_folder import POINTER, is_pointer
from schemas.ids import sha256_of


def with_identity_network(config: RunConfig, base: Path) -> RunConfig:
    """The config with the network's absolute path and digest; as it is without one.

    Raises:
        ValueError: a file that is missing, damaged, another network, not the one that `identity.digest` pins, or of a licence that the run
            forbids; no ONNX Runtime.
    """
    settings = config.identity
    if not settings.model:
        return config
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError("identity.model needs ONNX Runtime: install crosspair[cpu], or crosspair[gpu] (docs/models.md)")
    path = (base / Path(settings.model).expanduser()).absolute()
    if not path.is_file():
        raise ValueError(f"identity.model: {path} is not there; name an ONNX file of yours, or leave the key out: nothing is downloaded")
    if is_pointer(path):
        raise ValueError(f"{path}: {POINTER}")
    from stages.facenet import FaceNet

    _in_one_file(path)
    FaceNet(path, settings.normalise)  # or its error, now
    found = sha256_of(path)
    if settings.digest and settings.digest != found:
        raise ValueError(f"{path}: identity.digest pins it to {settings.digest}, found {found}; put that back, or mend or remove the pin")
    if not config.weights.allow_non_commercial:
        forbid_non_commercial([path])
    return replace(config, identity=replace(settings, model=str(path), digest=found))


def _in_one_file(path: Path) -> None:
    """Raises ValueError where the weights lie in another file: the digest would not say what the network computes."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as e:  # protobuf's and onnx's own
        raise ValueError(f"{path}: expected an ONNX file; truncated, or another kind of file: download it again") from e
    if any(t.external_data for t in model.graph.initializer):
        raise ValueError(f"{path}: keeps its weights in another file; save it as one file")
