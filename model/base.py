"""A folder of SD3 weights as training finds it: which one it was, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors import SafetensorError

from model.portrait_dit import PortraitConfig, new_base
from schemas.ids import digest, file_digest


@dataclass(frozen=True, kw_only=True)
class BaseFolder:
    """The weights that training began with. An adapter means nothing beside others."""

    folder: str
    digest: str


def transformer_folder(folder: Path) -> Path:
    """A pipeline's folder has the transformer in a folder of its own. Raises ValueError when there is none in either place."""
    for found in (folder / "transformer", folder):
        if (found / "config.json").is_file():
            return found
    raise ValueError(f"base: {folder} holds no transformer: neither config.json nor transformer/config.json (as diffusers saves SD3)")


def find_base(folder: Path) -> BaseFolder:
    """Reads all weights once, for their digest."""
    found = transformer_folder(folder).resolve()
    files = sorted([found / "config.json", *found.glob("*.safetensors")])
    return BaseFolder(folder=str(found), digest=digest(*(part for file in files for part in (file.name, file_digest(file)))))


def load_base(folder: Path, config: PortraitConfig) -> SD3Transformer2DModel:
    """In float32. Raises ValueError when it cannot be read, or has other sizes than the model of the config."""
    found = transformer_folder(folder)
    try:
        base = SD3Transformer2DModel.from_pretrained(found, torch_dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as e:
        raise ValueError(f"base: {found} cannot be read: {e}") from e
    with torch.device("meta"):
        wanted = new_base(config).config
    for key in (k for k in wanted if not k.startswith("_")):
        here, there = _plain(base.config[key]), _plain(wanted[key])
        if here != there:
            raise ValueError(f"base: {found} has {key} {here}, the model of the config has {there}; choose another `model` or `base`")
    return base


def _plain(value: object) -> object:
    return list(value) if isinstance(value, list | tuple) else value
