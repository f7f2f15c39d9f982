"""A prompt's embedding as a file: safetensors with `tokens` (L, D) and `pooled` (D), and what made it in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from model.controls import Text
from model.portrait_config import PortraitConfig

TEXT_NAME = "text.safetensors"  # beside a pair set's index: the one prompt that training shows
_FORMAT = "crosspair.text/1"
_METADATA = "crosspair"  # one key: of several, the library writes now this one first and now that


def encode_text_file(tokens_LD: Tensor, pooled_D: Tensor, *, prompt: str, encoders: Mapping[str, str]) -> bytes:
    """The file's bytes, the same for the same embedding.

    Args:
        tokens_LD, pooled_D: float32.
        prompt: that was encoded.
        encoders: name of each text encoder -> digest of its files, "" for one that was not there.
    """
    about = {"format": _FORMAT, "prompt": prompt, "encoders": dict(encoders)}
    tensors = {"tokens": tokens_LD.contiguous(), "pooled": pooled_D.contiguous()}
    return save(tensors, metadata={_METADATA: json.dumps(about, sort_keys=True)})


def read_prompt(path: Path, config: PortraitConfig) -> Text:
    """A prompt's embedding, from a safetensors file with `tokens` (L, D) and `pooled` (D), as SD3.5's text encoders give them.

    Raises:
        ValueError: not such a file, or not of the model's sizes.
    """
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path}: cannot be read as safetensors: {e}; `crosspair text-embedding` makes such a file") from e
    wanted = {"tokens": (config.text_tokens, config.text_dim), "pooled": (config.pooled_dim,)}
    shapes = {name: tuple(x.shape) for name, x in given.items()}
    if shapes != wanted:
        raise ValueError(
            f"{path}: holds {shapes}; the embedding of one prompt for this model is {wanted} "
            f"(`crosspair text-embedding --tokens {config.text_tokens}`)"
        )
    return Text(given["tokens"][None].float(), given["pooled"][None].float())
