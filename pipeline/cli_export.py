"""`crosspair export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.interrupts import interruptible

console = Console(highlight=False, soft_wrap=True)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint's folder, or OUT of a training run: its newest")],
    out: Annotated[Path, typer.Argument(help="the folder to write; must not be there yet")],
    weights: Annotated[bool, typer.Option("--weights", help="the weights as they were, not their averages")] = False,
    adapters: Annotated[bool, typer.Option("--adapters", help="LoRA's file alone, not merged into the base")] = False,
    base: Annotated[Path | None, typer.Option(help="the folder of SD3.5 that adapters were trained on, where it was moved")] = None,
) -> None:
    """Writes a checkpoint's model as safetensors in diffusers' layout, to hand on or to animate with."""
    from model.checkpoint import export as write_export
    from model.checkpoint import find_checkpoint

    with interruptible():
        write_export(find_checkpoint(checkpoint), out, ema=False if weights else None, merge=not adapters, base=base)
    console.print(f"exported: {out}")
