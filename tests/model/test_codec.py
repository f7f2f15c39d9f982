"""The weights-free codec: right shape, about unit variance, and pictures that can be recognised."""

import cv2
import numpy as np
import pytest
import torch
from pairset import photo

from model.codec import _MEAN, _STD, DctCodec


def at(size_px: int) -> np.ndarray:
    return cv2.resize(photo(), (size_px, size_px), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(("size_px", "least_db"), [(64, 20), (128, 22.5), (512, 28)])
def test_a_portrait_photo_survives(size_px: int, least_db: float) -> None:
    frame, codec = at(size_px), DctCodec()
    latents = codec.encode(torch.from_numpy(frame)[None])
    assert latents.shape == (1, 16, size_px // 8, size_px // 8) and latents.dtype == torch.float32
    back = codec.decode(latents)[0].numpy()
    assert back.shape == frame.shape and back.dtype == np.uint8
    error = np.square(back.astype(float) - frame).mean()
    assert 10 * np.log10(255**2 / error) > least_db


def test_what_was_decoded_encodes_to_itself() -> None:
    codec = DctCodec()
    gentle = (at(64).astype(int) // 2 + 64).astype(np.uint8)  # far from the ends of the range, so nothing is clipped
    latents = codec.encode(torch.from_numpy(gentle)[None])
    assert (codec.encode(codec.decode(latents)) - latents).abs().max() < 0.05


def test_constants_are_those_of_the_photo() -> None:
    codec = DctCodec()
    latents = [codec.encode(torch.from_numpy(at(s))[None])[0].flatten(1) for s in (64, 128, 256, 512)]
    mean = torch.stack([z.mean(1) for z in latents]).mean(0)
    variance = torch.stack([z.square().mean(1) for z in latents]).mean(0) - mean.square()
    assert len(_MEAN) == len(_STD) == codec.channels
    assert mean.abs().max() < 0.15 and (variance.sqrt() - 1).abs().max() < 0.02


def test_a_flat_picture_is_flat_and_keeps_its_colour() -> None:
    codec = DctCodec()
    flat = torch.tensor([200, 40, 90], dtype=torch.uint8).expand(2, 16, 16, 3)
    assert (codec.decode(codec.encode(flat)).int() - flat.int()).abs().max() <= 1


@pytest.mark.parametrize("bad", [torch.zeros(1, 20, 20, 3, dtype=torch.uint8), torch.zeros(1, 16, 16, 3), torch.zeros(16, 16, 3)])
def test_other_shapes_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        DctCodec().encode(bad)
