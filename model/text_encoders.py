"""SD3.5's text encoders at work, one in memory at a time: a prompt in, the tokens and the pooled vector out that its transformer reads.

CLIP-L's and CLIP-G's hidden states of the layer before the last stand side by side (77 x 2048), zeros fill them up to T5's width
(77 x 4096), and T5's tokens follow. This is diffusers' `StableDiffusion3Pipeline.encode_prompt`, without a pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from model.sd35 import read_sizes, transformer_folder
from schemas.ids import digest, file_digest

# Shape suffixes: L tokens, D token width.

CLIP_TOKENS = 77
T5_TOKENS = (77, 256)  # what SD3.5 is trained with, and what diffusers samples with
_T5 = "text_encoder_3"
_REMEDY = "name a folder of SD3.5 in diffusers' layout, with tokenizer/, text_encoder/, tokenizer_2/ and text_encoder_2/ in it"


class Embedded(NamedTuple):
    """A prompt as the transformer reads it, float32, and the digest of the files of each encoder; "" for a T5 that is not there."""

    tokens_LD: Tensor
    pooled_D: Tensor
    encoders: dict[str, str]


@torch.no_grad()
def encode_prompt(
    base: Path,
    prompt: str,
    *,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] = lambda _: None,
) -> Embedded:
    """The embedding of one prompt.

    Args:
        base: a folder of SD3.5 in diffusers' layout. Where text_encoder_3/ is missing, zeros stand for what T5 says.
        tokens: in all: 154 or 333, of which 77 are CLIP's.
        dtype: to compute in; T5 takes 19 GB in float32.
        say: is told of what the encoders do not see.

    Raises:
        ValueError: no such folder, a damaged encoder, or encoders of other sizes than the transformer beside them.
    """
    t5_tokens = tokens - CLIP_TOKENS
    if t5_tokens not in T5_TOKENS:
        raise ValueError(f"--tokens {tokens}: there are {' and '.join(str(CLIP_TOKENS + n) for n in T5_TOKENS)}")
    hidden_LD, pooled_D, encoders = [], [], {}
    for number in ("", "_2"):
        folder = base / f"text_encoder{number}"
        encoders[folder.name] = _digest(folder)
        ids = _ids(_loaded(CLIPTokenizer, base / f"tokenizer{number}"), prompt, CLIP_TOKENS, f"CLIP ({folder.name})", say)
        found = _loaded(CLIPTextModelWithProjection, folder, dtype).to(device)(ids.to(device), output_hidden_states=True)
        hidden_LD.append(found.hidden_states[-2][0].float().cpu())
        pooled_D.append(found.text_embeds[0].float().cpu())
        del found
    clip_LD, pooled = torch.cat(hidden_LD, dim=-1), torch.cat(pooled_D)
    t5_LD, encoders[_T5] = _t5(base, prompt, t5_tokens, device, dtype, say)
    if clip_LD.shape[1] > t5_LD.shape[1]:
        raise ValueError(f"{base}: CLIP's tokens are wider ({clip_LD.shape[1]}) than the transformer's ({t5_LD.shape[1]}); {_REMEDY}")
    tokens_LD = torch.cat([F.pad(clip_LD, (0, t5_LD.shape[1] - clip_LD.shape[1])), t5_LD])
    if not (tokens_LD.isfinite().all() and pooled.isfinite().all()):
        raise ValueError(f"{base}: the text encoders give what is no number; compute in float32 (--dtype float32)")
    return Embedded(tokens_LD, pooled, encoders)


def _t5(base: Path, prompt: str, tokens: int, device: torch.device, dtype: torch.dtype, say: Callable[[str], None]) -> tuple[Tensor, str]:
    """T5's tokens, float32 (L, D), and its digest; zeros as wide as the transformer has it where there is no T5."""
    folder = base / _T5
    if not folder.is_dir():
        say(f"{base}: no {_T5}/ (T5): zeros stand for its tokens, as SD3.5 knows them from its training")
        return torch.zeros(tokens, read_sizes(transformer_folder(base))["joint_attention_dim"]), ""
    # Padding is attended to: SD3.5 was trained so.
    ids = _ids(_loaded(T5Tokenizer, base / "tokenizer_3"), prompt, tokens, "T5", say)
    hidden_LD = _loaded(T5EncoderModel, folder, dtype).to(device)(ids.to(device))[0][0].float().cpu()
    if (base / "transformer").is_dir():
        width = read_sizes(base / "transformer")["joint_attention_dim"]
        if width != hidden_LD.shape[1]:
            raise ValueError(f"{folder}: gives tokens {hidden_LD.shape[1]} wide, the transformer beside it takes {width}; {_REMEDY}")
    return hidden_LD, _digest(folder)


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str, length: int, who: str, say: Callable[[str], None]) -> Tensor:
    """Token ids (1, length), padded or cut."""
    whole = tokenizer(prompt)["input_ids"]
    if len(whole) > length:
        say(f"{who} sees the first {length} of the prompt's {len(whole)} tokens")
    ids: Tensor = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
    return ids


def _loaded(kind: Any, folder: Path, dtype: torch.dtype | None = None) -> Any:
    """A tokenizer, or with `dtype` a network. Nothing is downloaded. Raises ValueError for a damaged one."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not there; {_REMEDY}")
    try:
        if dtype is None:
            return kind.from_pretrained(folder, local_files_only=True)
        network, found = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as e:
        raise ValueError(f"{folder}: no whole {kind.__name__}: {e}; fetch it again") from e
    if wrong := [*found["missing_keys"], *found.get("mismatched_keys", ())]:
        raise ValueError(f"{folder}: no whole {kind.__name__}: {sorted(map(str, wrong))[:3]} are missing; fetch it again")
    return network.eval()


def _digest(folder: Path) -> str:
    """Of an encoder's config and weights, as they lie in its folder: those that are loaded, in one file or in several."""
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        return digest(*(part for name in ("config.json", *names) for part in (name, file_digest(folder / name))))
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise ValueError(f"{folder}: no whole text encoder: {e}; {_REMEDY}") from e
