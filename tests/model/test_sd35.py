"""A base in diffusers' layout becomes a portrait DiT and goes back, and what cannot be used says so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.controls import Controls, Text
from model.portrait_config import PortraitConfig
from model.portrait_dit import PortraitDiT, no_text
from model.sd35 import load_base, new_base

SIZES = PortraitConfig(layers=2, heads=2, head_dim=16, position_grid=48, sample_size=16, dual_layers=1, text_dim=24, pooled_dim=40)
ADDED = PortraitConfig(frames=3, history=2, frame_tokens=5)  # the sizes of the base come from the folder
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return new_base(SIZES).eval()


@pytest.fixture(scope="module")
def saved(base: SD3Transformer2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd35")
    base.save_pretrained(folder / "transformer")
    return folder


def inputs(rows: int = 10, columns: int = 6) -> tuple[Tensor, Tensor, Text]:
    g = torch.Generator().manual_seed(1)
    text = Text(torch.randn(2, 5, SIZES.text_dim, generator=g), torch.randn(2, SIZES.pooled_dim, generator=g))
    return torch.randn(2, 3, SIZES.channels, rows, columns, generator=g), torch.tensor([700.0, 30.0]), text


@torch.no_grad()
def alone(base: SD3Transformer2DModel, noisy: Tensor, timestep: Tensor, text: Text) -> Tensor:
    of = {"timestep": timestep, "encoder_hidden_states": text.tokens_BLD, "pooled_projections": text.pooled_BD}
    return torch.stack([base(hidden_states=frame, **of).sample for frame in noisy.unbind(1)], 1)


def damaged(saved: Path, tmp_path: Path, **config: object) -> Path:
    """A copy whose config.json says something else."""
    for path in (saved / "transformer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said | config))
    return tmp_path


@pytest.mark.parametrize("inside", ["", "transformer"])
def test_a_pretrained_base_answers_as_before_frame_by_frame(inside: str, saved: Path, base: SD3Transformer2DModel) -> None:
    dit, (noisy, timestep, text) = PortraitDiT.from_pretrained(saved / inside, ADDED), inputs()
    assert dit.config == replace(SIZES, frames=3, history=2, frame_tokens=5)
    with torch.no_grad():
        out = dit(noisy, timestep, text, Controls())
    torch.testing.assert_close(out, alone(base, noisy, timestep, text), atol=1e-5, rtol=0)


def test_with_its_table_cut_it_is_still_a_model_that_diffusers_loads(saved: Path, base: SD3Transformer2DModel, tmp_path: Path) -> None:
    PortraitDiT.from_pretrained(saved, ADDED).base.save_pretrained(tmp_path)
    back = SD3Transformer2DModel.from_pretrained(tmp_path)
    assert (back.config.pos_embed_max_size, base.config.pos_embed_max_size) == (16, 48)
    for rows, columns in ((10, 6), (2, 8), (32, 32)):  # odd and even numbers of tokens, and all of the table that is left
        torch.testing.assert_close(alone(back, *inputs(rows, columns)), alone(base, *inputs(rows, columns)), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sharded_weights_of_any_dtype_are_read(dtype: torch.dtype, base: SD3Transformer2DModel, tmp_path: Path) -> None:
    half = new_base(SIZES)
    half.load_state_dict(base.state_dict())
    half.to(dtype).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    dit = PortraitDiT.from_pretrained(tmp_path, ADDED)
    assert {p.dtype for p in dit.parameters()} == {torch.float32}
    assert all(torch.equal(p, base.state_dict()[name].to(dtype).float()) for name, p in dit.base.named_parameters())
    kept = PortraitDiT.from_pretrained(tmp_path, ADDED, dtype=dtype)
    noisy, timestep, _ = inputs()
    with torch.no_grad():
        assert kept(noisy.to(dtype), timestep, no_text(kept.config, 2, dtype=dtype), Controls()).dtype == dtype


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"qk_norm": None}, "qk_norm must be rms_norm"),
        ({"dual_attention_layers": [1]}, "must be the first ones"),
        ({"_class_name": "FluxTransformer2DModel"}, "describes no SD3Transformer2DModel"),
        ({"num_layers": 3}, "its weights cannot be read: .*transformer_blocks.1"),
        ({"joint_attention_dim": 25}, "its weights cannot be read: .*context_embedder"),
        ({"caption_projection_dim": 16}, "caption_projection_dim must be"),
    ],
)
def test_a_model_that_cannot_be_used_says_why(config: dict, says: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"(?s){tmp_path}.*{says}.*stable-diffusion-3.5-medium"):
        load_base(damaged(saved, tmp_path, **config))


def test_what_is_not_there_or_not_whole_says_so(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}.*no model in diffusers' layout.*stable-diffusion-3.5-medium"):
        load_base(tmp_path)
    folder = damaged(saved, tmp_path)
    weights = load_file(folder / WEIGHTS)
    del weights["proj_out.bias"]
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*missing .*proj_out.bias"):
        load_base(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{tmp_path}: its weights cannot be read"):
        load_base(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path}: its weights cannot be read"):
        load_base(folder)


def test_frames_that_the_bases_table_cannot_take_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=rf"{saved}.*frame_tokens \(17\) must lie between 1 and 16"):
        PortraitDiT.from_pretrained(saved, replace(ADDED, frame_tokens=16 + 1, position_grid=384))
