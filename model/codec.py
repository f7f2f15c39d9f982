"""Pictures to latents and back without any weights: the lowest DCT coefficients of 8x8 blocks, in the shape of SD3's VAE."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.ids import digest

# Shape suffixes: T frames, C latent channels, H W latent rows and columns, S frame side in px.

BLOCK_PX = 8
# ITU-R BT.601, full range: rows are Y, Cb, Cr over R, G, B.
_RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# (colour plane, vertical frequency, horizontal frequency) of each latent channel: ten of luma, three of each chroma.
_COEFFICIENTS = (
    *((0, v, u) for v, u in ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0))),
    *((plane, v, u) for plane in (1, 2) for v, u in ((0, 0), (0, 1), (1, 0))),
)
# Mean and standard deviation of each coefficient of pictures in [-1, 1], over scikit-image's `astronaut` (a portrait photo) area-resized
# to 64, 128, 256 and 512 px, each size with the same weight. Rounded; means of all but the three constant terms are 0.
# tests/model/test_codec.py measures them again.
_MEAN = (-0.76, *(0.0,) * 9, -0.67, 0.0, 0.0, 1.17, 0.0, 0.0)
_STD = (3.93, 1.26, 1.07, 0.60, 0.66, 0.77, 0.41, 0.41, 0.37, 0.32, 0.87, 0.25, 0.24, 1.36, 0.30, 0.27)


class LatentCodec(Protocol):
    """What training and sampling ask of a codec; a wrapped `AutoencoderKL` has this shape as well."""

    name: str  # by which a checkpoint says what its latents are
    channels: int
    factor: int  # frame px per latent row

    def encode(self, frames_TSS3: Tensor) -> Tensor:
        """uint8 RGB (T, S, S, 3) to float32 latents (T, C, S / factor, S / factor) of about unit variance."""

    def decode(self, latents_TCHW: Tensor) -> Tensor:
        """The inverse: uint8 RGB (T, S, S, 3)."""

    def fingerprint(self) -> str:
        """Names what latents are of beside the picture: weights and settings. Latents of two fingerprints are not to be mixed."""


def whole_float32() -> AbstractContextManager[None]:
    """cuDNN would round what goes into convolutions to 10 bits, and latents are the same wherever they are made."""
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return context


class DctCodec:
    """Keeps 16 of the 192 DCT coefficients of each 8x8 RGB block: faces stay recognisable, fine texture does not.

    Analysis and synthesis are one strided convolution each, since colour transform, DCT and scaling are all linear.
    """

    name, version = "dct", 1  # another version for other latents
    channels = len(_COEFFICIENTS)
    factor = BLOCK_PX

    def __init__(self) -> None:
        rgb_to_ycc = torch.tensor(_RGB_TO_YCC, dtype=torch.float64)
        planes = [p for p, _, _ in _COEFFICIENTS]
        basis_C88 = torch.stack([torch.outer(_cosine(v), _cosine(u)) for _, v, u in _COEFFICIENTS])
        std_C = torch.tensor(_STD, dtype=torch.float64)[:, None, None, None]
        analysis = torch.einsum("cr,cij->crij", rgb_to_ycc[planes], basis_C88) / std_C
        synthesis = torch.einsum("cr,cij->crij", torch.linalg.inv(rgb_to_ycc).T[planes], basis_C88) * std_C
        self._analysis_C388, self._synthesis_C388 = analysis.float(), synthesis.float()
        self._offset_C = torch.tensor([m / s for m, s in zip(_MEAN, _STD, strict=True)])[:, None, None]

    def encode(self, frames_TSS3: Tensor) -> Tensor:
        """uint8 RGB (T, S, S, 3) to float32 (T, 16, S / 8, S / 8). Raises ValueError when 8 does not divide S."""
        if frames_TSS3.dtype != torch.uint8 or frames_TSS3.ndim != 4 or frames_TSS3.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T, S, S, 3), got {frames_TSS3.dtype} {tuple(frames_TSS3.shape)}")
        if frames_TSS3.shape[1] % BLOCK_PX or frames_TSS3.shape[2] % BLOCK_PX:
            raise ValueError(f"frames of {tuple(frames_TSS3.shape[1:3])} px cannot be cut into blocks of {BLOCK_PX} px")
        rgb_T3SS = frames_TSS3.permute(0, 3, 1, 2).float() / 127.5 - 1
        device = rgb_T3SS.device
        with whole_float32():
            return F.conv2d(rgb_T3SS, self._analysis_C388.to(device), stride=BLOCK_PX) - self._offset_C.to(device)

    def decode(self, latents_TCHW: Tensor) -> Tensor:
        """float (T, 16, H, W) to uint8 RGB (T, 8 H, 8 W, 3)."""
        device = latents_TCHW.device
        scaled_TCHW = latents_TCHW.float() + self._offset_C.to(device)
        rgb_T3SS = F.conv_transpose2d(scaled_TCHW, self._synthesis_C388.to(device), stride=BLOCK_PX)
        return ((rgb_T3SS + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def fingerprint(self) -> str:
        return digest(self.name, self.version, BLOCK_PX, repr((_RGB_TO_YCC, _COEFFICIENTS, _MEAN, _STD)))


def _cosine(frequency: int) -> Tensor:
    """One row of the orthonormal 8-point DCT-II, float64 (8,)."""
    x = torch.arange(BLOCK_PX, dtype=torch.float64)
    row = torch.cos(torch.pi * (2 * x + 1) * frequency / (2 * BLOCK_PX))
    return row * ((1 if frequency == 0 else 2) / BLOCK_PX) ** 0.5
