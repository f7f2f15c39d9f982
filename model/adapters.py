"""LoRA (arXiv 2106.09685) on the base model through peft, in the files that diffusers loads.

Only the base is adapted; the temporal modules are new, so they are trained in full.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders import SD3LoraLoaderMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

_FILE = "pytorch_lora_weights.safetensors"  # as diffusers' pipelines look for it
_ADAPTER, _PREFIX = "default", "transformer."


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = 32
    alpha: float = 32.0  # what the adapter adds is scaled by alpha / rank
    dropout: float = 0.0
    # Ends of the names of linear layers. These are the attentions over image tokens: noise, source and driving frames all pass there.
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"lora: rank must be at least 1 and alpha above 0, not {self.rank} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be at least 0 and below 1, not {self.dropout}")
        if not self.targets:
            raise ValueError("lora.targets: name at least one layer, or set `tune: full`")


def add_adapters(base: SD3Transformer2DModel, config: LoraConfig) -> None:
    """Freezes the base and adds adapters that change nothing yet; drawn from torch's global generator.

    Raises:
        ValueError: a target that no layer's name ends in.
    """
    names = [name for name, _ in base.named_modules()]
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            layers = sorted(
                {name.split(".", 2)[2] for name, m in base.named_modules() if _in_block(name) and isinstance(m, torch.nn.Linear)}
            )
            raise ValueError(f"lora.targets: no layer's name ends in {target!r}; a block has {', '.join(layers)}")
    base.requires_grad_(False)
    base.add_adapter(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets),
        ),
        _ADAPTER,
    )


def _in_block(name: str) -> bool:
    return name.startswith("transformer_blocks.") and name.count(".") >= 2


def save_adapters(base: SD3Transformer2DModel, folder: Path) -> None:
    """For `StableDiffusion3Pipeline.load_lora_weights(folder)` and `SD3Transformer2DModel.load_lora_adapter(folder)`."""
    SD3LoraLoaderMixin.save_lora_weights(
        folder,
        transformer_lora_layers={k: v.contiguous() for k, v in get_peft_model_state_dict(base, adapter_name=_ADAPTER).items()},
        transformer_lora_adapter_metadata=_as_json(base.peft_config[_ADAPTER].to_dict()),
        weight_name=_FILE,
    )


def load_adapters(base: SD3Transformer2DModel, folder: Path) -> None:
    """Into adapters that `add_adapters` made. Raises ValueError when the file's are others."""
    saved = {k.removeprefix(_PREFIX): v for k, v in load_file(folder / _FILE).items()}
    here = get_peft_model_state_dict(base, adapter_name=_ADAPTER)
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in here.items()}:
        raise ValueError(f"{folder / _FILE}: holds other adapters than the recipe says")
    set_peft_model_state_dict(base, saved, adapter_name=_ADAPTER)


def merge_adapters(base: SD3Transformer2DModel) -> None:
    """Adds what the adapters learned to the base's weights, and takes them out: a plain model again. Without adapters nothing changes."""
    if has_adapters(base):
        base.fuse_lora()
        base.unload_lora()


def has_adapters(base: SD3Transformer2DModel) -> bool:
    return any(isinstance(m, BaseTunerLayer) for m in base.modules())


def without_adapters(base: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The untouched base below the adapters; it shares their memory."""
    with torch.device("meta"):
        plain = SD3Transformer2DModel.from_config(base.config)
    weights: dict[str, Tensor] = {k.replace(".base_layer.", "."): v for k, v in base.state_dict().items() if ".lora_" not in k}
    plain.load_state_dict(weights, assign=True)
    return plain


def _as_json(config: dict[str, Any]) -> dict[str, Any]:
    """Only what JSON holds: sets as sorted lists, enums as their values."""
    plain: dict[str, Any] = json.loads(json.dumps(config, default=lambda x: sorted(x) if isinstance(x, set) else str(x)))
    return plain
