"""The networks that look at faces: the user's files, checked before anything else, and their digests, which the fingerprints hold."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.catalogue import forbid_non_commercial
from pipeline.config import RunConfig
from pipeline.models_folder import POINTER, is_pointer
from schemas.ids import sha256_of

_IDENTITY = "w600k_r50.onnx"  # of an InsightFace pack


def with_face_networks(config: RunConfig, base: Path, began: Mapping[str, Any] | None = None) -> RunConfig:
    """The config with absolute paths and digests of the networks that it names; as it is without any.

    With InsightFace's pack for finding faces, the pack's ArcFace tells who they are, unless the config names another network or none.

    Args:
        began: the config that the run has gone on with so far, as run.yaml has it.

    Raises:
        ValueError: a file that is missing, damaged, another network, not the one that its `digest` pins, or of a licence that the run
            forbids; a pack that has lost the ArcFace that the run began with; no ONNX Runtime.
    """
    faces, identity = config.faces, config.identity
    if faces.engine == "insightface":
        pack = (base / Path(faces.pack).expanduser()).absolute()
        from stages.scrfd import PACK_FILE, ScrfdDetector

        found = _checked(config, "faces.pack", pack / PACK_FILE, "faces.digest", faces.digest, ScrfdDetector)
        config = replace(config, faces=replace(faces, pack=str(pack), digest=found))
        if not identity.model and identity.from_pack:
            if (pack / _IDENTITY).is_file():
                identity = replace(identity, model=str(pack / _IDENTITY), normalise="arcface")
            elif _was_the_packs(began or {}):
                without = "nobody would be linked to anybody any more, which is done with identity: {from_pack: false}"
                raise ValueError(f"faces.pack: {pack / _IDENTITY} is not there, and the run began with it; put it back. Else {without}")
    if identity.model:
        from stages.facenet import FaceNet

        path = (base / Path(identity.model).expanduser()).absolute()
        normalise = identity.normalise
        found = _checked(config, "identity.model", path, "identity.digest", identity.digest, lambda p: FaceNet(p, normalise))
        config = replace(config, identity=replace(identity, model=str(path), digest=found))
    return config


def _was_the_packs(began: Mapping[str, Any]) -> bool:
    """Whether a run has told people apart by the ArcFace of a pack."""
    model, pack = (began.get(section, {}).get(key, "") for section, key in (("identity", "model"), ("faces", "pack")))
    return bool(model and pack) and Path(model) == Path(pack) / _IDENTITY


def _checked(config: RunConfig, key: str, path: Path, pin_key: str, pin: str, load: Callable[[Path], object]) -> str:
    """The digest of a file that `load` takes and that its pin and its licence allow."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError(f"{key} needs ONNX Runtime: install crosspair[cpu], or crosspair[gpu] (docs/models.md)")
    if not path.is_file():
        raise ValueError(f"{key}: {path} is not there; bring your own copy, or leave the key out: nothing is downloaded")
    if is_pointer(path):
        raise ValueError(f"{path}: {POINTER}")
    _in_one_file(path)
    load(path)  # or its error, now
    found = sha256_of(path)
    if pin and pin != found:
        raise ValueError(f"{path}: {pin_key} pins it to {pin}, found {found}; put that back, or mend or remove the pin")
    if not config.weights.allow_non_commercial:
        forbid_non_commercial([path])
    return found


def _in_one_file(path: Path) -> None:
    """Raises ValueError where the weights lie in another file: the digest would not say what the network computes."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as e:  # protobuf's and onnx's own
        raise ValueError(f"{path}: expected an ONNX file; truncated, or another kind of file: download it again") from e
    if any(t.external_data for t in model.graph.initializer):
        raise ValueError(f"{path}: keeps its weights in another file; save it as one file")
