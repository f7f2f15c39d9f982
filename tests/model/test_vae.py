"""SD3.5's VAE as a codec: the latents that diffusers' own pipelines make, from any number of frames, and errors that say what to do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from model.codec import DctCodec
from model.vae import VaeCodec, codec_of

SCALE, SHIFT = 1.5305, 0.0609


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD3.5's folder, as far as it is needed, with a VAE of random weights: three levels, so a factor of 4."""
    folder = tmp_path_factory.mktemp("sd35")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
    ).save_pretrained(folder / "vae")
    return folder


def frames(count: int, side_px: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side_px, side_px, 3), np.uint8))


def test_latents_are_those_of_diffusers(base: Path) -> None:
    """(mean - shift) scale, of pictures in -1..1; and back."""
    codec, vae = VaeCodec(base), AutoencoderKL.from_pretrained(base / "vae").eval()
    assert (codec.name, codec.channels, codec.factor) == ("vae", 16, 4)
    pictures = frames(3)
    z = codec.encode(pictures)
    assert z.shape == (3, 16, 8, 8) and z.dtype == torch.float32
    with torch.no_grad():
        mean = vae.encode(pictures.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        shown = vae.decode(z / SCALE + SHIFT).sample
    torch.testing.assert_close(z, (mean - SHIFT) * SCALE, atol=1e-5, rtol=0)
    back = codec.decode(z)
    assert back.shape == (3, 32, 32, 3) and back.dtype == torch.uint8
    assert (back.float() - (shown.permute(0, 2, 3, 1) + 1) * 127.5).clamp(-0.5, 0.5).abs().max() <= 0.5
    assert (back.float() - ((shown.permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255)).abs().max() < 0.51


def test_frames_are_taken_a_few_at_a_time_and_stay_in_order(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, pictures, seen = VaeCodec(base), frames(11), []
    encode = AutoencoderKL.encode

    def spied(self: AutoencoderKL, x: torch.Tensor) -> object:
        seen.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(AutoencoderKL, "encode", spied)
    together, apart = codec.encode(pictures), torch.cat([codec.encode(p[None]) for p in pictures])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert sum(seen) == 22 and max(seen) <= 4
    assert (codec.decode(together).int() - torch.cat([codec.decode(z[None]) for z in apart]).int()).abs().max() <= 1


def test_encoding_is_the_same_each_time_and_keeps_no_graph(base: Path) -> None:
    codec = VaeCodec(base)
    torch.manual_seed(1)
    first = codec.encode(frames(2))
    torch.manual_seed(2)
    assert torch.equal(first, codec.encode(frames(2))) and not first.requires_grad


def test_frames_that_do_not_fit_are_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        VaeCodec(base).encode(frames(1, 30))
    with pytest.raises(ValueError, match="uint8"):
        VaeCodec(base).encode(frames(1).float())


def test_a_recipes_codec_by_its_name(base: Path, tmp_path: Path) -> None:
    assert isinstance(codec_of("dct"), DctCodec) and isinstance(codec_of("vae", base), VaeCodec)
    with pytest.raises(ValueError, match="no codec 'jpeg'; there are dct and vae"):
        codec_of("jpeg")
    with pytest.raises(ValueError, match=r"name a folder of SD3\.5"):
        codec_of("vae")
    with pytest.raises(ValueError, match=r"holds no vae/config\.json"):
        codec_of("vae", tmp_path)


def test_a_damaged_vae_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((base / "vae" / "config.json").read_text())
    weights = next((base / "vae").glob("*.safetensors"))
    (tmp_path / "vae" / weights.name).write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{tmp_path / 'vae'}: no whole AutoencoderKL"):
        codec_of("vae", tmp_path)
