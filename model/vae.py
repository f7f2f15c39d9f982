"""SD3.5's own latents: diffusers' `AutoencoderKL` in the shape of a `LatentCodec`, and which codec a checkpoint's latents are of."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor

from model.codec import DctCodec, LatentCodec, whole_float32
from schemas.ids import content_digest, digest

# Shape suffixes: T frames, C latent channels, H W latent rows and columns, S frame side in px.

_SUBFOLDER = "vae"
_AT_ONCE = 4  # frames in the network's hands, so that memory does not grow with their number


class VaeCodec:
    """z = (mean of the posterior - shift) scale, with shift and scale of the folder's own config (0.0609 and 1.5305 in SD3.5).

    The mean and not a draw: encoding is a function of the picture alone, so that previous frames, cached latents and resumed runs are what
    they were; a draw would differ from it by noise far below what the decoder shows. Runs where the pictures lie, in float32, and is
    never trained.

    Args:
        folder: of SD3.5 in diffusers' layout, with `vae/` in it. Nothing is downloaded.

    Raises:
        ValueError: no such folder, or a damaged one.
    """

    name, version = "vae", 1  # another version for other latents

    def __init__(self, folder: Path) -> None:
        if not (folder / _SUBFOLDER / "config.json").is_file():
            raise ValueError(f"{folder}: holds no {_SUBFOLDER}/config.json; name a folder of SD3.5 in diffusers' layout")
        try:
            vae, found = AutoencoderKL.from_pretrained(
                folder / _SUBFOLDER, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as e:
            raise ValueError(f"{folder / _SUBFOLDER}: no whole AutoencoderKL: {e}; fetch it again") from e
        if found["missing_keys"]:
            raise ValueError(
                f"{folder / _SUBFOLDER}: no whole AutoencoderKL: {sorted(found['missing_keys'])[:3]} are missing; fetch it again"
            )
        self._vae = vae.eval().requires_grad_(False)
        self._scale, self._shift = float(vae.config.scaling_factor), float(vae.config.shift_factor or 0.0)
        self.channels: int = vae.config.latent_channels
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, frames_TSS3: Tensor) -> Tensor:
        """uint8 RGB (T, S, S, 3) to float32 (T, C, S / factor, S / factor). Raises ValueError when the factor does not divide S."""
        if frames_TSS3.dtype != torch.uint8 or frames_TSS3.ndim != 4 or frames_TSS3.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T, S, S, 3), got {frames_TSS3.dtype} {tuple(frames_TSS3.shape)}")
        if frames_TSS3.shape[1] % self.factor or frames_TSS3.shape[2] % self.factor:
            raise ValueError(f"frames of {tuple(frames_TSS3.shape[1:3])} px: the VAE takes multiples of {self.factor}")
        vae = self._vae.to(frames_TSS3.device)
        parts = frames_TSS3.permute(0, 3, 1, 2).split(_AT_ONCE)
        with whole_float32():
            means = torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in parts])
        return (means - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents_TCHW: Tensor) -> Tensor:
        """float (T, C, H, W) to uint8 RGB (T, S, S, 3)."""
        vae = self._vae.to(latents_TCHW.device)
        parts = (latents_TCHW.float() / self._scale + self._shift).split(_AT_ONCE)
        frames = (((vae.decode(part).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for part in parts)
        return torch.cat([f.permute(0, 2, 3, 1) for f in frames]).contiguous()

    def fingerprint(self) -> str:
        """Of the weights as they are used: in which files and in how many bits they lay does not matter. Reads them all."""
        weights = sorted(self._vae.state_dict().items())
        parts = (
            part for name, w in weights for part in (name, str(tuple(w.shape)), content_digest(w.cpu().contiguous().numpy().tobytes()))
        )
        return digest(self.name, self.version, repr((self._scale, self._shift)), *parts)


def codec_of(name: str, folder: Path | None = None) -> LatentCodec:
    """The codec that a recipe names.

    Args:
        name: "dct" or "vae".
        folder: for "vae": of SD3.5 in diffusers' layout.

    Raises:
        ValueError: another name, "vae" without a folder, or a folder that does not serve.
    """
    if name == DctCodec.name:
        return DctCodec()
    if name != VaeCodec.name:
        raise ValueError(f"there is no codec {name!r}; there are {DctCodec.name} and {VaeCodec.name}")
    if folder is None:
        raise ValueError("latents are those of SD3.5's VAE: name a folder of SD3.5 in diffusers' layout, with vae/ in it (`base`)")
    return VaeCodec(folder)
