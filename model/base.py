"""A folder of SD3 weights as training finds it: which one it was, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from diffusers import SD3Transformer2DModel

from model import sd35
from model.portrait_config import PortraitConfig
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
    base = sd35.load_base(transformer_folder(folder))
    sizes = sd35.sized_as(config, base)
    if sizes.position_grid == config.table_side:  # a table that was cut already is as good as a whole one
        sizes = replace(sizes, position_grid=config.position_grid)
    for field in fields(config):
        there, wanted = getattr(sizes, field.name), getattr(config, field.name)
        if there != wanted:
            raise ValueError(
                f"base: {folder} has {field.name} {there}, the model of the config has {wanted}; choose another `model` or `base`"
            )
    return base
