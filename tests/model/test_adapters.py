"""LoRA trains beside an untouched base, resumes bit for bit, and is read by diffusers; merged it is the same model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders import SD3LoraLoaderMixin
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader

from model.adapters import LoraConfig
from model.base import find_base
from model.checkpoint import Checkpoints, export, load_model, load_recipe
from model.controls import Controls
from model.diary import LOG_NAME
from model.log import read_log
from model.portrait_dit import PortraitDiT, no_text
from model.sd35 import new_base
from model.settings import TrainConfig
from model.trainer import Trainer

LORA = LoraConfig(rank=3, alpha=6.0)  # alpha other than rank: whoever forgets the scale is wrong by a factor of two


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a pipeline keeps it: the transformer in a folder of its own."""
    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(5)
    new_base(TrainConfig(shards=folder, out=folder).portrait()).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def lora(config: TrainConfig, base_folder: Path) -> TrainConfig:
    return replace(config, base=base_folder, tune="lora", lora=LORA, lr=1e-2)


def latest(config: TrainConfig) -> Path:
    found = Checkpoints(config.out / "checkpoints", keep=1).latest()
    assert found is not None
    return found


def run(config: TrainConfig) -> Trainer:
    trainer = Trainer(config)
    trainer.train()
    return trainer


def velocity(model: PortraitDiT) -> torch.Tensor:
    torch.manual_seed(1)
    noisy = torch.randn(1, model.config.frames, model.config.channels, 4, 4)
    with torch.no_grad():
        return model.eval()(noisy, torch.tensor([500.0]), no_text(model.config, 1), Controls(source_BCHW=torch.randn(1, 16, 4, 4)))


def test_three_steps_and_three_more_are_six_with_dropout_too(lora: TrainConfig, tmp_path: Path) -> None:
    lora = replace(lora, lora=replace(LORA, dropout=0.2), lr_decay="cosine", lr_end=1e-3)
    straight = run(lora)
    stopped = replace(lora, out=tmp_path / "stopped")
    trainer = Trainer(stopped)
    for _ in range(3):
        trainer.train_step(trainer.stream.batch(trainer.position, lora.batch_size))
    trainer.save()
    torch.manual_seed(123)
    resumed = run(stopped)
    assert [r["loss"] for r in read_log(lora.out / LOG_NAME)][3:] == [r["loss"] for r in read_log(stopped.out / LOG_NAME)]
    assert straight.ema is not None and resumed.ema is not None
    for name, p in straight.model.named_parameters():
        assert torch.equal(p, resumed.model.get_parameter(name)), name
        assert not p.requires_grad or torch.equal(straight.ema.averages[name], resumed.ema.averages[name])
    with pytest.raises(ValueError, match=r"steps \(was 6, is 7\)"):  # a learning rate that falls knows its end
        Trainer(replace(stopped, steps=7))


def test_the_base_stays_and_is_not_saved_again(lora: TrainConfig, base_folder: Path, tmp_path: Path) -> None:
    trainer, folder = run(lora), latest(lora)
    before = load_file(base_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    after = {k.replace(".base_layer.", "."): v for k, v in trainer.model.base.state_dict().items() if ".lora_" not in k}
    assert set(before) == set(after) and all(torch.equal(v, after[k]) for k, v in before.items())
    names = {name.rsplit(".", 3)[0] for name, p in trainer.model.base.named_parameters() if p.requires_grad}
    assert names and all(name.endswith(LORA.targets) for name in names)
    assert all(p.requires_grad for p in trainer.model.temporal.parameters())
    assert trainer.ema is not None and len(trainer.ema.averages) == len(trainer.trained) < len(before)
    saved = FileSystemReader(folder / "state").read_metadata().state_dict_metadata
    weights = [k for k in saved if k.startswith("training.model.")]
    assert len(weights) == len(trainer.trained) + 1  # and the table of positions
    export(folder, tmp_path / "export", merge=False)
    files = {str(p.relative_to(tmp_path / "export")) for p in (tmp_path / "export").rglob("*.safetensors")}
    assert files == {"lora/pytorch_lora_weights.safetensors", "temporal.safetensors"}
    assert torch.equal(velocity(load_model(tmp_path / "export")), velocity(load_model(folder)))
    assert load_recipe(folder).base == find_base(base_folder)


@pytest.mark.parametrize("ema", [False, True])
def test_diffusers_loads_the_adapter_with_its_scale(lora: TrainConfig, base_folder: Path, ema: bool, tmp_path: Path) -> None:
    trainer, folder = run(lora), latest(lora)
    merged = load_model(folder, ema=ema)
    export(folder, tmp_path / "export", ema=ema, merge=False)
    weights, metadata = SD3LoraLoaderMixin.lora_state_dict(tmp_path / "export" / "lora", return_lora_metadata=True)
    theirs = SD3Transformer2DModel.from_pretrained(base_folder, subfolder="transformer")
    SD3LoraLoaderMixin.load_lora_into_transformer(weights, theirs, metadata=metadata)
    theirs.fuse_lora()
    theirs.unload_lora()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(value, merged.base.state_dict()[name], msg=name)
    untouched = load_file(base_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    changed = {k for k, v in merged.base.state_dict().items() if not torch.equal(v, untouched[k])}
    assert changed and all(k.removesuffix(".weight").endswith(LORA.targets) for k in changed)
    if not ema:
        torch.testing.assert_close(velocity(merged), velocity(trainer.model), atol=1e-5, rtol=1e-4)


def test_merged_it_is_a_checkpoint_like_any_other(lora: TrainConfig, tmp_path: Path) -> None:
    run(lora)
    export(latest(lora), tmp_path / "merged")
    recipe = load_recipe(tmp_path / "merged")
    assert recipe.lora is None and not recipe.ema and recipe.frame_px == 32
    torch.testing.assert_close(velocity(load_model(tmp_path / "merged")), velocity(load_model(latest(lora))))
    assert SD3Transformer2DModel.from_pretrained(tmp_path / "merged", subfolder="transformer").config.num_layers == recipe.model.layers
    with pytest.raises(ValueError, match="is there already"):
        export(latest(lora), tmp_path / "merged")


def test_a_base_without_a_folder_is_saved_untouched(lora: TrainConfig, tmp_path: Path) -> None:
    lora = replace(lora, base=None, steps=3)
    began = {k: v.clone() for k, v in Trainer(lora).model.base.state_dict().items()}
    trainer, folder = run(lora), latest(lora)
    export(folder, tmp_path / "export", merge=False)
    base = SD3Transformer2DModel.from_pretrained(tmp_path / "export", subfolder="transformer").state_dict()
    assert all(torch.equal(began.get(k, began.get(k.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias"))), v)
               for k, v in base.items())  # fmt: skip
    torch.testing.assert_close(velocity(load_model(folder, ema=False)), velocity(trainer.model), atol=1e-5, rtol=1e-4)


def test_adapters_belong_to_one_base(lora: TrainConfig, base_folder: Path, tmp_path: Path) -> None:
    lora = replace(lora, steps=1)
    moved = tmp_path / "moved"
    (tmp_path / "first").mkdir()
    for file in (base_folder / "transformer").iterdir():
        (tmp_path / "first" / file.name).write_bytes(file.read_bytes())
    run(replace(lora, base=tmp_path / "first"))
    expected = velocity(load_model(latest(lora)))
    (tmp_path / "first").rename(moved)
    with pytest.raises(ValueError, match=r"belong to the base .*first; name the place where it lies now"):
        load_model(latest(lora))
    assert torch.equal(velocity(load_model(latest(lora), base=moved)), expected)
    run(replace(lora, base=moved, steps=2))
    weights = moved / "diffusion_pytorch_model.safetensors"
    other = {k: v + 1 if k == "proj_out.bias" else v for k, v in load_file(weights).items()}
    save_file(other, weights)
    with pytest.raises(ValueError, match="belong to another base"):
        Trainer(replace(lora, base=moved, steps=3))
    with pytest.raises(ValueError, match=r"training began with .*first, and `base` says otherwise"):
        Trainer(replace(lora, base=None, steps=3))
    full = replace(lora, tune="full", base=moved, out=tmp_path / "full")
    run(full)
    with pytest.raises(ValueError, match=r"training began with .*moved, and `base` says otherwise"):
        Trainer(replace(full, base=None, steps=3))


def test_full_tuning_begins_with_the_base_too(lora: TrainConfig, base_folder: Path) -> None:
    full = replace(lora, tune="full", steps=1)
    began = Trainer(full).model.base.state_dict()
    assert all(torch.equal(began[k], v) for k, v in load_file(base_folder / "transformer" / "diffusion_pytorch_model.safetensors").items())
    assert all(p.requires_grad for p in Trainer(full).model.parameters())
    run(full)
    assert load_recipe(latest(full)).base == find_base(base_folder)
    began = Trainer(full).model.base.state_dict()  # resumed from the checkpoint alone
    assert all(torch.equal(began[k], v) for k, v in load_model(latest(full), ema=False).base.state_dict().items())


def test_what_does_not_fit_is_refused(lora: TrainConfig, base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no layer's name ends in 'to_x'; a block has .*attn\.to_q.*ff\.net\.2"):
        Trainer(replace(lora, lora=replace(LORA, targets=("to_q", "to_x"))))
    with pytest.raises(ValueError, match=r"no model in diffusers. layout"):
        Trainer(replace(lora, base=tmp_path))
    config = json.loads((base_folder / "transformer" / "config.json").read_text())
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be read"):
        Trainer(replace(lora, base=tmp_path))
    SD3Transformer2DModel.from_config(config | {"num_layers": 3}).save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match="layers 3, not 4"):
        Trainer(replace(lora, base=tmp_path))


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [({"rank": 0}, "rank must be at least 1"), ({"dropout": 1.0}, "below 1"), ({"targets": ()}, "name at least one layer")],
)
def test_settings_that_cannot_be_meant_are_refused(setting: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LoraConfig(**setting)
