"""`crosspair latents` and `crosspair text-embedding`: what training needs not compute again at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.interrupts import interruptible, resumable
from pipeline.storage import exclusive
from schemas.files import own_storage
from schemas.sample import read_index
from schemas.store import Store, open_store

console = Console(highlight=False, soft_wrap=True)

_SHARDS = "a pair set's folder (RUN/shards/SET), or a run with only one; or s3://bucket/prefix"
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one")]


def latents(
    shards: Annotated[str, typer.Argument(help=_SHARDS)],
    codec: Annotated[str, typer.Option(help="dct, without weights, or vae, SD3.5's")] = "dct",
    base: Annotated[Path | None, typer.Option(help="for vae: a folder of SD3.5 in diffusers' layout")] = None,
    frame_px: Annotated[int | None, typer.Option(min=1, help="side that frames are resized to; by default as in the shards")] = None,
    tar_mb: Annotated[int, typer.Option(min=1, help="size of a tar")] = 512,
    device: Device = None,
) -> None:
    """Encodes targets and stills of a pair set once, beside it; run it again for what is new."""
    with resumable(_say):
        from model.device import device_of
        from model.latents import write_latents
        from model.vae import codec_of

        pair_set, where = _pair_set(shards), device_of(device)
        with exclusive(_run_of(pair_set)):
            written = write_latents(
                pair_set,
                codec_of(codec, base),
                frame_px=frame_px,
                tar_mb=tar_mb,
                device=where,
                say=_say,
            )
    console.print(f"latents of {written.kept + written.made} samples in {pair_set.at('latents')}, {written.made} of them new")
    if written.bad:
        console.print(f"{len(written.bad)} samples were left out; training encodes those itself, or says what is wrong with them")
    raise typer.Exit(bool(written.bad))


def _say(text: str) -> None:
    console.print(text, markup=False)


def _run_of(pair_set: Store) -> Store:
    """The run that a pair set belongs to, which one process works on at a time; the set itself where it stands alone."""
    run, _, rest = str(pair_set).rpartition("/shards/")
    if run and "/" not in rest and open_store(run).size("run.yaml") >= 0:
        return open_store(run)
    return pair_set


def _pair_set(shards: str) -> Store:
    """Raises ValueError when there is none, or more than one."""
    from model.stream import find_pair_set

    store = open_store(find_pair_set(shards))
    read_index(store)
    return store


def text_embedding(
    shards: Annotated[str | None, typer.Argument(help=f"{_SHARDS}: the embedding is put beside its index", show_default=False)] = None,
    base: Annotated[Path, typer.Option(help="a folder of SD3.5 in diffusers' layout, with its text encoders")] = Path(),
    prompt: Annotated[str, typer.Option(help="what it says")] = "",
    tokens: Annotated[int, typer.Option(help="154, or 333: with 256 of T5's")] = 154,
    out: Annotated[Path | None, typer.Option(help="instead of SHARDS: the file to write (safetensors: tokens, pooled)")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, for the half of memory")] = "float32",
    device: Device = None,
) -> None:
    """Encodes a prompt with SD3.5's text encoders: the one that training shows, or one for `crosspair animate --prompt`."""
    if (shards is None) == (out is None):
        raise ValueError("name either SHARDS, to put the embedding beside its index, or --out FILE")
    with interruptible():
        import torch

        from model.device import device_of
        from model.text import TEXT_NAME, encode_text_file
        from model.text_encoders import encode_prompt

        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if dtype not in dtypes:
            raise ValueError(f"--dtype {dtype}: there are {' and '.join(dtypes)}")
        store, name = (open_store(out.absolute().parent), out.name) if out else (_pair_set(shards or ""), TEXT_NAME)
        found = encode_prompt(base, prompt, tokens=tokens, device=device_of(device), dtype=dtypes[dtype], say=_say)
        with own_storage(store.here):
            store.write(name, encode_text_file(found.tokens_LD, found.pooled_D, prompt=prompt, encoders=found.encoders))
    console.print(f"{tuple(found.tokens_LD.shape)} tokens: {store.at(name)}")
