"""A folder of SD3.5 weights as training finds it: which one it was, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from diffusers import SD3Transformer2DModel

from model.portrait_config import PortraitConfig
from model.sd35 import load_base, read_sizes, sized_as, transformer_folder
from schemas.ids import digest, file_digest


@dataclass(frozen=True, kw_only=True)
class BaseFolder:
    """The weights that training began with. An adapter means nothing beside others."""

    folder: str
    digest: str


def find_base(folder: Path) -> BaseFolder:
    """Reads all weights once, for their digest. Raises ValueError when there is no model."""
    found = transformer_folder(folder).resolve()
    read_sizes(found)
    files = sorted([found / "config.json", *found.glob("*.safetensors")])
    return BaseFolder(folder=str(found), digest=digest(*(part for file in files for part in (file.name, file_digest(file)))))


def load_fitting(folder: Path, config: PortraitConfig) -> SD3Transformer2DModel:
    """The base in `folder`, in float32, its position table whole.

    Raises:
        ValueError: it cannot be read, or has other sizes than `config`.
    """
    base = load_base(folder)
    found = sized_as(config, base)
    if found.position_grid == config.table_side:  # a table that was cut already is as good as a whole one
        found = replace(found, position_grid=config.position_grid)
    apart = [f"{k} {v}, not {getattr(config, k)}" for k, v in vars(found).items() if v != getattr(config, k)]
    if apart:
        raise ValueError(f"base: {folder} is not of the size that `model` says: {'; '.join(apart)}; choose another `model` or `base`")
    return base
