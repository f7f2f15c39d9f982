"""The portrait DiT: parameters and operations in closed form, and seconds per denoising step.

    python -m benchmarks.dit [--runs 5] [--compile both|off|on] [--layers N]

On a GPU: the paper's size (16 frames of 576 px, 3 before them) in bfloat16 with random weights, all four sets of controls of a guided
step. On a CPU: the same code on the tiny model, where what counts is the ratio between the ways. A step is the four passes that guidance
needs; TFLOP/s count what the model has to do, not what a kernel does besides.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from model.controls import Controls, D, Dropped, P, S, U
from model.cost import count_parameters, forward_flops, training_flops
from model.modulation import Bank
from model.portrait_config import SD35_MEDIUM, TINY, PortraitConfig
from model.portrait_dit import PortraitDiT, no_text

BRANCHES = {"u": U, "s": S, "d": D, "p": P}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run the four passes of a step."""

    name: str
    changes: dict[str, object]  # of the config
    batched: bool = False  # one pass over a batch of four, each of which sees its own controls alone


WAYS = (
    Way(name="removed, in turn", changes={}),
    Way(name="zeroed, in turn", changes={"dropped": Dropped.ZERO_LATENTS}),
    Way(name="removed, as a batch", changes={}, batched=True),  # tokens that nothing attends to
    Way(name="zeroed, as a batch", changes={"dropped": Dropped.ZERO_LATENTS}, batched=True),
    Way(name="removed, frozen", changes={"frozen_controls": True}),
    Way(name="removed, factorised", changes={"factorised": True}),
)


def tables() -> None:
    """Parameters, and TFLOP of each pass at the paper's size; nothing is run."""
    forms: dict[str, PortraitConfig] = {
        "as the paper has it": SD35_MEDIUM,
        "factorised": replace(SD35_MEDIUM, factorised=True),
        "with a feed-forward": replace(SD35_MEDIUM, temporal_ffn=True),
        "history only read": replace(SD35_MEDIUM, temporal_updates_history=False),
        "dropped controls zeroed": replace(SD35_MEDIUM, dropped=Dropped.ZERO_LATENTS),
        "frozen controls": replace(SD35_MEDIUM, frozen_controls=True),
    }
    print("16 frames of 576 x 576 with 3 before them, 154 text tokens; TFLOP of each pass, of the four, of a training step")
    print(f"{'':26s}{'base':>8s}{'temporal':>10s}{'u':>8s}{'s':>8s}{'d':>8s}{'p':>8s}{'four':>9s}{'bank d':>8s}{'train':>8s}{'again':>8s}")
    for name, config in forms.items():
        parameters = count_parameters(config)
        flops = {branch: forward_flops(config, rows=36, columns=36, kept=kept) for branch, kept in BRANCHES.items()}
        passes = [f.banked / 1e12 for f in flops.values()]
        training = [training_flops(flops["p"], recompute=recompute) / 1e12 for recompute in (False, True)]
        print(
            f"{name:26s}{parameters.base / 1e6:7.0f}M{parameters.temporal / 1e6:9.0f}M"
            + "".join(f"{p:8.1f}" for p in passes)
            + f"{sum(passes):9.1f}{flops['d'].bank / 1e12:8.1f}{training[0]:8.0f}{training[1]:8.0f}"
        )


def random_model(config: PortraitConfig, device: torch.device, dtype: torch.dtype) -> PortraitDiT:
    torch.manual_seed(0)
    with device:
        dit = PortraitDiT(config)
    for temporal in dit.temporal:
        torch.nn.init.normal_(temporal.out.weight, std=0.02)  # zeros draw less power than what is learned would
    return dit.to(dtype).eval().requires_grad_(False)


def guided_step(dit: PortraitDiT, way: Way, side: int) -> Callable[[], Tensor]:
    """The four passes of one step on random latents of `side` rows and columns, as sampling would make them."""
    config, like = dit.config, next(dit.parameters())
    shape = (1, config.frames, config.channels, side, side)
    noisy = torch.randn(shape, device=like.device, dtype=like.dtype)
    source, driving, history = (torch.randn_like(x) for x in (noisy[:, 0], noisy, noisy[:, : config.history]))
    text = no_text(config, 1, device=like.device, dtype=like.dtype)
    timestep = torch.full((1,), 700.0, device=like.device)
    modulation = dit.modulations(timestep, text)[0]
    if way.batched:
        noisy_four, times_four = noisy.expand(4, -1, -1, -1, -1), timestep.expand(4)
        four = Controls(source_BCHW=torch.cat([source] * 4), driving_BFCHW=torch.cat([driving] * 4), history_BPCHW=torch.cat([history] * 4))
        kept = list(BRANCHES.values())
        return lambda: dit(noisy_four, times_four, text, four, kept=kept, modulation=modulation).sum(0)
    controls = Controls(source_BCHW=source, driving_BFCHW=driving, history_BPCHW=history)
    sets = {name: controls.keep(kept) for name, kept in BRANCHES.items()}
    banks: dict[str, Bank | None] = {name: dit.bank(text, sets[name], noisy) if config.frozen_controls else None for name in sets}

    def step() -> Tensor:
        outs = [dit(noisy, timestep, text, c, modulation=modulation, bank=banks[name]) for name, c in sets.items()]
        return torch.stack(outs).sum(0)

    return step


def seconds(step: Callable[[], Tensor], device: torch.device, runs: int) -> list[float]:
    """Of each run, after two that do not count."""
    taken = []
    for _ in range(runs + 2):
        started = _clock(device)
        step()
        taken.append(_clock(device) - started)
    return taken[2:]


def _clock(device: torch.device) -> float:
    """Wall seconds once the GPU has done its work; on a CPU, which others use too, the seconds that this process had it."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def measure(config: PortraitConfig, way: Way, device: torch.device, dtype: torch.dtype, side: int, *, runs: int, compiled: bool) -> float:
    """Prints a row; the median of the seconds."""
    tokens = side // config.patch
    config = replace(config, **way.changes)  # type: ignore[arg-type]
    dit = random_model(config, device, dtype)
    if compiled:
        torch.compiler.reset()
        for module in (*dit.base.transformer_blocks, *dit.temporal):
            module.compile(dynamic=False)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    taken = seconds(guided_step(dit, way, side), device, runs)
    tflop = sum(forward_flops(config, rows=tokens, columns=tokens, kept=kept).banked for kept in BRANCHES.values()) / 1e12
    memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:9.1f}" if device.type == "cuda" else f"{'-':>9s}"
    times = f"{min(taken):9.3f}{median(taken):9.3f}{max(taken):9.3f}"
    print(f"{way.name:26s}{'yes' if compiled else 'no':>9s}{times}{tflop:10.4g}{tflop / median(taken):9.4g}{memory}", flush=True)
    return median(taken)


def steps(config: PortraitConfig, device: torch.device, dtype: torch.dtype, side: int, *, runs: int, compile_modes: list[bool]) -> None:
    torch._dynamo.config.recompile_limit = 64  # each set of controls has a shape of its own, and there are three kinds of blocks
    print(f"{'':26s}{'compiled':>9s}{'s: min':>9s}{'median':>9s}{'max':>9s}{'TFLOP':>10s}{'TFLOP/s':>9s}{'peak GB':>9s}")
    medians: dict[tuple[str, bool], float] = {}
    for compiled in compile_modes:
        for way in WAYS:
            try:
                medians[way.name, compiled] = measure(config, way, device, dtype, side, runs=runs, compiled=compiled)
            except torch.OutOfMemoryError as e:
                print(f"{way.name:26s}{'yes' if compiled else 'no':>9s} does not fit: {str(e).splitlines()[0]}", flush=True)
    removed, zeroed = (medians.get((way.name, compile_modes[0])) for way in WAYS[:2])
    if removed and zeroed:
        print(f"removed / zeroed: {removed / zeroed:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--compile", choices=("both", "off", "on"), default=None, help="each block by torch.compile; both on a GPU, else off"
    )
    parser.add_argument("--layers", type=int, default=None, help="fewer than the model has, for a quick look")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    modes = {"both": [False, True], "off": [False], "on": [True]}[args.compile or ("both" if gpu else "off")]
    tables()
    config = SD35_MEDIUM if gpu else TINY
    if args.layers is not None:
        config = replace(config, layers=args.layers, dual_layers=min(config.dual_layers, args.layers))
    if gpu:
        print(f"\nseconds per denoising step, {torch.cuda.get_device_name()}, bfloat16, {config.layers} blocks, torch {torch.__version__}")
        steps(config, torch.device("cuda"), torch.bfloat16, 72, runs=args.runs, compile_modes=modes)
    else:
        torch.set_num_threads(1)
        size = f"{config.layers} blocks of width {config.width}, 128 px"
        print(f"\nno GPU: CPU seconds per denoising step of a tiny model ({size}), 1 thread, float32")
        steps(config, torch.device("cpu"), torch.float32, 16, runs=args.runs, compile_modes=modes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
