"""The base model: SD3.5's transformer, fresh or from a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from safetensors import SafetensorError

from model.portrait_config import PortraitConfig
from model.positions import position_table

_REMEDY = (
    "give the folder of a Stable Diffusion 3.5 Medium in diffusers' layout, or its `transformer/`: config.json and "
    "diffusion_pytorch_model*.safetensors, as "
    "`hf download stabilityai/stable-diffusion-3.5-medium --include 'transformer/*' --local-dir FOLDER` makes it"
)


def new_base(config: PortraitConfig) -> SD3Transformer2DModel:
    """The base model of this size with fresh weights; the position table is cut already."""
    base = SD3Transformer2DModel(
        sample_size=config.sample_size,
        patch_size=config.patch,
        in_channels=config.channels,
        num_layers=config.layers,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        caption_projection_dim=config.width,
        pooled_projection_dim=config.pooled_dim,
        out_channels=config.channels,
        pos_embed_max_size=config.table_side,
        dual_attention_layers=tuple(range(config.dual_layers)),
        qk_norm="rms_norm",
    )
    base.pos_embed.pos_embed = position_table(config).to(base.pos_embed.pos_embed.device)
    return base


def load_base(folder: Path, *, dtype: torch.dtype = torch.float32) -> SD3Transformer2DModel:
    """An SD3.5-style transformer in diffusers' layout, on the CPU: `folder` or its `transformer/`, in one file or sharded, of any dtype.

    Raises:
        ValueError: no such folder, another kind of model, or weights that are damaged or not all there; names the folder and what to give.
    """
    folder = transformer_folder(folder)
    _check(read_sizes(folder), folder)
    try:
        base, found = SD3Transformer2DModel.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as e:
        raise ValueError(f"{folder}: its weights cannot be read: {e}; {_REMEDY}") from e
    wrong = [f"{kind.removesuffix('_keys')} {sorted(map(str, keys))[:3]}" for kind, keys in found.items() if keys]
    if wrong:
        raise ValueError(f"{folder}: its weights are not those that its config.json describes: {', '.join(wrong)}; {_REMEDY}")
    for tensor in (*base.parameters(), *base.buffers()):  # into memory of our own: the file that they may be mapped from can be replaced
        tensor.data = tensor.data.clone()
    return base


def transformer_folder(folder: Path) -> Path:
    """`folder`, or its `transformer/`, where a pipeline's folder has the model."""
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def read_sizes(folder: Path) -> dict[str, Any]:
    """diffusers' config of the model in `folder`. Raises ValueError when there is none."""
    try:
        sizes = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as e:
        raise ValueError(f"{folder}: no model in diffusers' layout: {e}; {_REMEDY}") from e
    if not isinstance(sizes, dict) or sizes.get("_class_name") != "SD3Transformer2DModel":
        raise ValueError(f"{folder}: config.json describes no SD3Transformer2DModel; {_REMEDY}")
    return sizes


def _check(sizes: dict[str, Any], folder: Path) -> None:
    dual = list(sizes.get("dual_attention_layers") or [])
    width = (sizes.get("num_attention_heads") or 0) * (sizes.get("attention_head_dim") or 0)
    asked = {
        "caption_projection_dim must be num_attention_heads * attention_head_dim": sizes.get("caption_projection_dim") == width,
        "qk_norm must be rms_norm (Stable Diffusion 3 has none, 3.5 has it)": sizes.get("qk_norm") == "rms_norm",
        "pos_embed_max_size must be given": bool(sizes.get("pos_embed_max_size")),
        "dual_attention_layers must be the first ones": dual == list(range(len(dual))),
        "out_channels must be in_channels": (sizes.get("out_channels") or sizes.get("in_channels")) == sizes.get("in_channels"),
    }
    broken = [rule for rule, kept in asked.items() if not kept]
    if broken:
        raise ValueError(f"{folder}: config.json is of a model that cannot be used: {'; '.join(broken)}; {_REMEDY}")


def sized_as(config: PortraitConfig, base: SD3Transformer2DModel) -> PortraitConfig:
    """`config` with the sizes of this base, whose position table is whole. Raises ValueError when `frame_tokens` is too much for it."""
    sizes = base.config
    return replace(
        config,
        layers=sizes.num_layers,
        heads=sizes.num_attention_heads,
        head_dim=sizes.attention_head_dim,
        channels=sizes.in_channels,
        patch=sizes.patch_size,
        sample_size=sizes.sample_size,
        position_grid=sizes.pos_embed_max_size,
        dual_layers=len(sizes.dual_attention_layers),
        text_dim=sizes.joint_attention_dim,
        pooled_dim=sizes.pooled_projection_dim,
    )
