"""What a model is made of travels with its checkpoint as JSON, and what does not go together is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import Recipe, load_model, save_export
from model.controls import Dropped
from model.portrait_config import SD35_MEDIUM, TINY, PortraitConfig
from model.portrait_dit import PortraitDiT
from schemas.config import parse_config

UNUSUAL = PortraitConfig(
    layers=2,
    heads=2,
    head_dim=16,
    position_grid=20,
    sample_size=8,
    dual_layers=1,
    frames=2,
    history=1,
    frame_tokens=3,
    dropped=Dropped.ZERO_LATENTS,
    history_time="same",
    history_slot="own",
    factorised=True,
    frame_encoding="sincos",
    temporal_ffn=True,
    temporal_updates_history=False,
    frozen_controls=True,
)


@pytest.mark.parametrize("config", [TINY, SD35_MEDIUM, UNUSUAL])
def test_a_config_comes_back_from_json(config: PortraitConfig) -> None:
    back = parse_config(PortraitConfig, json.loads(json.dumps(asdict(config))))
    assert back == config and isinstance(back.dropped, Dropped)


def test_an_older_config_is_the_model_that_it_was() -> None:
    """Fields that it does not know have what was the only way then."""
    new = {"frame_tokens", "dropped", "history_slot", "frame_encoding", "temporal_ffn", "temporal_updates_history", "frozen_controls"}
    assert parse_config(PortraitConfig, {k: v for k, v in asdict(TINY).items() if k not in new}) == TINY
    assert TINY.frame_tokens is None and TINY.dropped == Dropped.REMOVED


def test_a_checkpoint_brings_every_choice_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dit = PortraitDiT(UNUSUAL)
    recipe = Recipe(model=UNUSUAL, codec="dct", frame_px=32, mask_dilation=0.01, shift=3.0, history_trained=True)
    save_export(dit, recipe, tmp_path)
    back = load_model(tmp_path)
    assert back.config == UNUSUAL
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in dit.state_dict().items())
    assert back.base.pos_embed.pos_embed.shape[1] == 10**2  # three frames of 3, and as even as 20


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"history": 9}, r"history \(9\) must be at most frames \(8\)"),
        ({"dual_layers": 5}, r"dual_layers \(5\) must lie between 0 and layers \(4\)"),
        ({"frame_tokens": 17}, r"frame_tokens \(17\) must lie between 1 and 16"),
        ({"frame_tokens": 0}, r"frame_tokens \(0\) must lie between 1 and 16"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(TINY, **changes)
