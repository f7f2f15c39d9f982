"""A trained model at work: a still and masked driving frames in, frames out, one window in hand at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from model.checkpoint import find_checkpoint, load_model, load_recipe, load_text
from model.controls import Text
from model.device import device_of
from model.sampling import SamplerConfig
from model.vae import codec_of
from model.windows import sample_windows


class Animator:
    """Makes the person of a still perform masked driving frames.

    Args:
        checkpoint: a checkpoint's folder, or a training run's, whose newest one serves.
        base: a folder of SD3.5 in diffusers' layout, where the one that the model was trained from is no longer where it was.
        device: where to compute; None: a GPU where there is one.

    Attributes:
        recipe: what the model was trained with.
        history: whether windows after the first are shown previous frames: only where training showed them some.

    Raises:
        ValueError: no checkpoint there, or a damaged one; a codec that needs `base`; no such device.
    """

    def __init__(self, checkpoint: Path, *, base: Path | None = None, device: str | None = None) -> None:
        self.folder = find_checkpoint(checkpoint)
        self.recipe = load_recipe(self.folder)
        self.history = self.recipe.history_trained and self.recipe.model.history > 0
        trained_from = None if self.recipe.base is None else Path(self.recipe.base.folder)
        if trained_from is not None and trained_from.name == "transformer":
            trained_from = trained_from.parent  # vae/ lies beside it
        self._codec = codec_of(self.recipe.codec, base or trained_from)
        self._device = device_of(device)
        self._text = Text(*(x.to(self._device) for x in load_text(self.folder, self.recipe.model)))
        try:
            self._model = load_model(self.folder, base=base).eval().requires_grad_(False).to(self._device)
        except torch.OutOfMemoryError as e:
            raise ValueError(f"{self.folder}: the model does not fit into the memory of {self._device}: {e}") from e

    def frames(
        self, source: np.ndarray, driving: Iterable[np.ndarray], config: SamplerConfig, *, seed: int, prompt: Text | None = None
    ) -> Iterator[np.ndarray]:
        """As many frames as driving ones, uint8 RGB (S, S, 3) with S = `recipe.frame_px`.

        Driving frames are taken a window at a time, and of what was made no more is kept than the next window sees. The same seed
        and inputs give the same frames on the same machine.

        Args:
            source: a still of the person to animate, uint8 RGB (S, S, 3).
            driving: uint8 RGB (S, S, 3) each: eyes, nose and mouth, the rest black.
            config: how to sample; its shift should be the recipe's.
            seed: of the noise.
            prompt: see `model.sampling.sample_window`.
        """
        assert source.shape == (self.recipe.frame_px, self.recipe.frame_px, 3), source.shape
        generator = torch.Generator().manual_seed(seed)
        windows = sample_windows(
            self._model,
            self._text,
            self._encode(source[None]),
            (self._encode(np.stack(part))[None] for part in _parts(driving, self.recipe.model.frames)),
            config,
            generator=generator,
            history=self.history,
            prompt=None if prompt is None else Text(*(x.to(self._device) for x in prompt)),
        )
        for window_BFCHW in windows:
            yield from self._codec.decode(window_BFCHW[0]).cpu().numpy()

    def _encode(self, frames: np.ndarray) -> torch.Tensor:
        return self._codec.encode(torch.from_numpy(frames).to(self._device))


def _parts(frames: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """In lists of `size`, the last one shorter."""
    rest = iter(frames)
    while part := list(islice(rest, size)):
        yield part
