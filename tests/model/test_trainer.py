"""The loop: it learns, it resumes bit for bit, and it refuses to go on as another run."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import SD3Transformer2DModel
from pairset import members_of, write_pair_set
from torch.utils.flop_counter import FlopCounterMode

from model.adapters import LoraConfig
from model.checkpoint import Checkpoints, Recipe, export, load_model, load_progress, load_recipe, load_text
from model.codec import DctCodec
from model.controls import P
from model.diary import LOG_NAME, SEEN_NAME, SKIPPED_NAME
from model.guidance import Guidance
from model.latents import EncodedStream, EncodedWindow, Latents, write_latents
from model.log import StepMetrics, read_log
from model.objective import ObjectiveConfig
from model.portrait_dit import no_text
from model.sampling import SamplerConfig
from model.settings import LoaderConfig, SheetConfig, TrainConfig
from model.stream import Window
from model.text import encode_text_file
from model.trainer import Diverged, Trainer, _Due
from model.windows import sample_video

PLAIN = Guidance(source=1, driving=1, history=1)  # no guidance: the fully conditioned output


def losses(config: TrainConfig) -> list[float]:
    return [r["loss"] for r in read_log(config.out / LOG_NAME)]


def latest(config: TrainConfig) -> Path:
    found = Checkpoints(config.out / "checkpoints", keep=1).latest()
    assert found is not None
    return found


def run(config: TrainConfig) -> Trainer:
    trainer = Trainer(config)
    trainer.train()
    return trainer


def test_three_steps_and_three_more_are_six(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, history_from_step=4)
    straight = run(config)
    halves = replace(config, out=tmp_path / "halves")
    run(replace(halves, steps=3))
    torch.manual_seed(123)  # what else happens in the process must not matter
    resumed = run(halves)
    assert losses(config) == losses(halves) and len(losses(config)) == 6
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.position == 12
    assert straight.ema is not None and resumed.ema is not None
    for name, average in straight.ema.averages.items():
        assert torch.equal(average, resumed.ema.averages[name]), name
    assert not torch.equal(straight.ema.averages["base.proj_out.bias"], straight.model.base.proj_out.bias)
    moments = [[t.optimizer.state[p]["exp_avg_sq"] for p in t.trained] for t in (straight, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    for ema in (True, False):
        one, other = (load_model(latest(c), ema=ema).state_dict() for c in (config, halves))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_kill_between_checkpoints_redoes_those_steps(config: TrainConfig, tmp_path: Path) -> None:
    run(config)
    killed = replace(config, out=tmp_path / "killed")
    trainer = Trainer(killed)
    calls = 0
    step = trainer.train_step

    def dies(windows: list, *, waited_s: float) -> object:
        nonlocal calls
        calls += 1
        if calls == 6:
            trainer.settle()  # or, on a busy machine, the checkpoint might not have its name yet
            raise KeyboardInterrupt
        return step(windows, waited_s=waited_s)

    trainer.train_step = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(losses(killed)) == 5 and latest(killed).name == "step-000003"
    with (killed.out / LOG_NAME).open("a") as f:
        f.write('{"step": 6, "lo')
    partial = killed.out / "checkpoints" / ".partial-step-000006"
    partial.mkdir()
    run(killed)
    assert losses(killed) == losses(config) and not partial.exists()


def test_an_export_loads_in_diffusers(config: TrainConfig, tmp_path: Path) -> None:
    trainer = run(replace(config, steps=1))
    export(latest(config), tmp_path / "own", ema=False)
    base = SD3Transformer2DModel.from_pretrained(tmp_path / "own", subfolder="transformer")
    for name, value in base.state_dict().items():
        assert torch.equal(value, trainer.model.base.state_dict()[name])
    export(latest(config), tmp_path / "averages")  # unless asked otherwise
    averages = SD3Transformer2DModel.from_pretrained(tmp_path / "averages", subfolder="transformer")
    assert trainer.ema is not None
    assert torch.equal(averages.proj_out.weight, trainer.ema.averages["base.proj_out.weight"])
    assert not torch.equal(averages.proj_out.weight, base.proj_out.weight)
    sampled_with = load_model(latest(config))
    assert sampled_with.config == config.portrait() and torch.equal(sampled_with.base.proj_out.weight, averages.proj_out.weight)
    assert torch.equal(load_model(tmp_path / "averages").temporal[0].qkv.weight, sampled_with.temporal[0].qkv.weight)
    assert {"step", "position", "stream", "latents", "config"} == set(load_progress(latest(config)))


def test_old_checkpoints_go(config: TrainConfig) -> None:
    run(replace(config, steps=4, checkpoint_every=1, keep_checkpoints=2))
    assert sorted(p.name for p in (config.out / "checkpoints").glob("step-*")) == ["step-000003", "step-000004"]


def test_checkpoints_come_by_steps_and_by_time(config: TrainConfig) -> None:
    """A minute after the last, whichever that was; here a step takes 25 s, by the clock that counts."""
    config = replace(config, steps=9, checkpoint_every=4, checkpoint_minutes=1, keep_checkpoints=9)
    due = _Due(config, 1000.0, lambda: False)
    assert [s for s in range(1, 10) if due(s, 1000.0 + 25 * s)] == [3, 4, 7, 8, 9]
    trainer = Trainer(replace(config, steps=4, checkpoint_every=9))
    began_s, step = time.monotonic(), trainer.train_step

    def of_25_s(slots: list, *, waited_s: float) -> StepMetrics:
        return step(slots, waited_s=waited_s)._replace(clock_s=began_s + 25 * trainer.step)

    trainer.train_step = of_25_s  # type: ignore[method-assign]
    trainer.train()
    assert sorted(p.name for p in (config.out / "checkpoints").glob("step-*")) == ["step-000003", "step-000004"]


def test_other_settings_or_shards_are_another_run(config: TrainConfig, tmp_path: Path) -> None:
    run(replace(config, steps=1))
    with pytest.raises(ValueError, match=r"lr \(was 0.001, is 0.1\)"):
        Trainer(replace(config, lr=0.1))
    other = write_pair_set(tmp_path / "set", {"k": members_of("k", 12, tmp_path)})
    with pytest.raises(ValueError, match="other shards"):
        Trainer(replace(config, shards=other))


@pytest.mark.parametrize("frame_px", [40, 272])
def test_sizes_that_the_model_cannot_take_are_refused(config: TrainConfig, frame_px: int) -> None:
    with pytest.raises(ValueError, match="multiples of 16 up to 256"):
        Trainer(replace(config, frame_px=frame_px))


def test_one_sample_is_learned_and_can_be_sampled(config: TrainConfig, tmp_path: Path) -> None:
    """Objective, guidance and sampler agree: what was learned by heart comes back out of noise."""
    one = write_pair_set(tmp_path / "set", {"k": members_of("k", 6, tmp_path)})  # as long as the window
    trainer = run(
        replace(
            config,
            shards=one,
            steps=150,
            batch_size=4,
            lr=2e-3,
            warmup=10,
            checkpoint_every=1000,
            objective=ObjectiveConfig(dropout_chances=(0.1, 0.1, 0.7)),
            sheet=SheetConfig(steps=2, rows=2),
        )
    )
    seen = losses(trainer.config)
    assert sum(seen[-20:]) < 0.3 * sum(seen[:20])
    assert (trainer.config.out / "sheet.png").read_bytes()[:4] == b"\x89PNG"

    window, encode = trainer.stream.read(0), trainer.codec.encode
    source, driving, target = (encode(torch.from_numpy(x)) for x in (window.source[None], window.driving, window.target[2:]))
    text, generator = no_text(trainer.model.config, 1), torch.Generator().manual_seed(0)
    sampled = sample_video(trainer.model, text, source, driving[None], SamplerConfig(steps=10, guidance=PLAIN), generator=generator)[0]
    assert (sampled - target).square().mean() < 0.25 * target.square().mean()


def test_the_sheet_is_drawn_with_the_averages_and_leaves_no_trace(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = run(replace(config, steps=2))
    own = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    drawn_with: list[torch.Tensor] = []
    monkeypatch.setattr("model.trainer.sample_shown", lambda model, *_, **__: drawn_with.append(model.base.proj_out.weight.clone()))
    trainer.draw(tmp_path / "sheet.png", None)
    assert trainer.ema is not None and torch.equal(drawn_with[0], trainer.ema.averages["base.proj_out.weight"])
    assert all(torch.equal(v, own[k]) for k, v in trainer.model.state_dict().items())


def test_without_averages(config: TrainConfig, tmp_path: Path) -> None:
    """They change no weight, and a run goes on without them only if it began so."""
    plain = replace(config, steps=1, ema=None, out=tmp_path / "plain")
    assert torch.equal(run(plain).model.base.proj_out.weight, run(replace(config, steps=1)).model.base.proj_out.weight)
    assert not load_recipe(latest(plain)).ema
    with pytest.raises(ValueError, match="holds no averages"):
        load_model(latest(plain), ema=True)
    with pytest.raises(ValueError, match=r"ema.decay \(was None, is 0.999\)"):
        Trainer(replace(plain, ema=config.ema))


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(config: TrainConfig) -> None:
    trainer = Trainer(config)
    torch.nn.init.constant_(trainer.model.base.proj_out.bias, float("inf"))
    first = trainer.stream.batch(0, 2)
    with pytest.raises(Diverged, match=rf"step 0: non-finite loss .*'{first[0].key}', '{first[1].key}'.*, positions \[0, 1\].*lower `lr`"):
        trainer.train()
    assert trainer.step == 0 and all(p.isfinite().all() for p in trainer.model.temporal.parameters())


def test_the_log_says_what_a_step_took(config: TrainConfig) -> None:
    run(replace(config, steps=5, log_every=2))
    records = read_log(config.out / LOG_NAME)
    assert [r["step"] for r in records] == [2, 3, 4, 5]  # every second step, and at each checkpoint
    assert [r["lr"] for r in records] == [1e-3] * 4
    always = {"step", "loss", "grad_norm", "lr", "data_wait", "samples_per_s", "model_tflops_per_s", "memory_gb", "skipped", "workers"}
    assert all(set(r) - always <= {f"loss_sigma_{part}" for part in ("00", "25", "50", "75")} and always < set(r) for r in records)
    assert all(0 <= r["data_wait"] <= 1 and min(r["samples_per_s"], r["grad_norm"], r["model_tflops_per_s"]) > 0 for r in records)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_flops_are_those_of_a_counted_step(config: TrainConfig, tune: Literal["full", "lora"]) -> None:
    config = replace(config, tune=tune, lora=LoraConfig(rank=1))
    trainer = Trainer(replace(config, objective=ObjectiveConfig(dropout_chances=(0.0, 0.0, 0.0))))
    with FlopCounterMode(display=False) as counter:
        metrics = trainer.train_step(trainer.stream.batch(0, 2))
    assert metrics.flops == pytest.approx(counter.get_total_flops(), rel=0.1)  # the codec's and what the counter knows nothing of


def test_the_learning_rate_rises_and_is_what_the_optimizer_uses(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(replace(config, warmup=4))
    used: list[float] = []
    step = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda: (used.append(trainer.optimizer.param_groups[0]["lr"]), step()))
    trainer.train()
    assert used == [r["lr"] for r in read_log(config.out / LOG_NAME)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_previous_frames_can_be_noisy(config: TrainConfig) -> None:
    clean, noisy = (Trainer(replace(config, out=config.out / str(x), objective=ObjectiveConfig(history_noise=x))) for x in (0.0, 0.5))
    window = clean.stream.read(0)
    a, b = clean.examples(window), noisy.examples(window)
    assert torch.equal(b.history_PCHW, noisy.examples(window).history_PCHW)
    noise = b.history_PCHW - a.history_PCHW
    assert 0 < noise.std() < 0.6 and abs(noise.mean()) < 0.1
    for name in ("source_CHW", "driving_FCHW", "target_FCHW", "noise_FCHW"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    levels = [(noisy.examples(replace(window, position=i)).history_PCHW - a.history_PCHW).std() for i in range(8)]
    assert max(levels) < 0.55 and min(levels) < 0.5 * max(levels)


def test_the_loss_is_the_mean_over_samples_whatever_their_number(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, batch_size=3, max_grad_norm=1e9))
    windows = trainer.stream.batch(0, 3)
    with torch.no_grad():
        alone = [float(trainer.losses(trainer.kept(), [trainer.examples(w)])) for w in windows]
    metrics = trainer.train_step(windows)
    assert metrics.loss == pytest.approx(sum(alone) / 3, rel=1e-5) and len(set(alone)) == 3


def test_an_example_is_its_window_and_its_noise_is_its_positions(config: TrainConfig) -> None:
    trainer = Trainer(config)
    window, other = trainer.stream.batch(0, 2)
    example = trainer.examples(window)
    encode = trainer.codec.encode
    torch.testing.assert_close(example.history_PCHW, encode(torch.from_numpy(window.target[: config.portrait().history])))
    torch.testing.assert_close(example.target_FCHW, encode(torch.from_numpy(window.target[config.portrait().history :])))
    torch.testing.assert_close(example.driving_FCHW, encode(torch.from_numpy(window.driving)))
    torch.testing.assert_close(example.source_CHW, encode(torch.from_numpy(window.source)[None])[0])
    assert torch.equal(example.noise_FCHW, trainer.examples(window).noise_FCHW) and example.sigma == trainer.examples(window).sigma
    assert not torch.equal(example.noise_FCHW, trainer.examples(other).noise_FCHW) and example.sigma != trainer.examples(other).sigma


def test_previous_frames_are_seen_from_the_second_stage_on(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, history_from_step=4, objective=ObjectiveConfig(dropout_chances=(0.0, 0.0, 0.0))))
    seen: list[bool] = []
    trainer.model.register_forward_pre_hook(lambda _, args: seen.append(args[3].history_BPCHW is not None))
    trainer.train()
    assert seen == [False] * 4 + [True] * 2  # one pass a step
    expected = Recipe(
        model=config.portrait(),
        codec="dct",
        frame_px=32,
        size_px=96,
        mask_dilation=config.mask_dilation,
        shift=3.0,
        history_trained=True,
        ema=True,
    )
    assert load_recipe(latest(config)) == expected
    assert not load_recipe(latest(config).with_name("step-000003")).history_trained


def test_all_samples_of_a_step_keep_the_same_controls_and_steps_differ(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, steps=20, objective=ObjectiveConfig(dropout_chances=(0.3, 0.3, 0.3)), checkpoint_every=20))
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), args[3])))
    kept = []
    for _ in range(20):
        kept.append(trainer.kept())
        trainer.train_step(trainer.stream.batch(trainer.position, 2))
    assert [n for n, _ in seen] == [2] * 20  # whole batch, one pass
    given = [(c.source_BCHW is not None, c.driving_BFCHW is not None, c.history_BPCHW is not None) for _, c in seen]
    assert given == [tuple(k) for k in kept] and len(set(given)) > 2 and P in kept


def test_the_sheet_of_fewer_steps_goes_when_training_goes_on(config: TrainConfig) -> None:
    run(replace(config, steps=2, sheet=SheetConfig(steps=1, rows=1)))
    sheet = config.out / "sheet.png"
    assert sheet.is_file()
    run(replace(config, steps=2))
    assert sheet.is_file()  # nothing was left to do
    run(replace(config, steps=3))
    assert not sheet.is_file()


def test_history_can_be_left_out_altogether(config: TrainConfig) -> None:
    run(replace(config, history=0, steps=2, sheet=SheetConfig(steps=1, rows=1)))
    recipe = load_recipe(latest(config))
    assert recipe.model.history == 0 and not recipe.history_trained


def broken(pair_set: Path, key: str) -> None:
    """A sample's bytes, where they lie in the tar."""
    row = next(r for r in pq.read_table(pair_set / "index.parquet").to_pylist() if r["sample"] == key)
    member = next(m for m in row["members"] if m["name"] == "driving.mp4")
    with (pair_set / row["tar"]).open("r+b") as tar:
        tar.seek(member["offset"])
        tar.write(b"\0" * 100)


def test_a_sample_that_cannot_be_used_weighs_nothing(config: TrainConfig, tmp_path: Path) -> None:
    """Gradients are of the others alone, the place in the stream goes on, and the log says so."""
    config = replace(config, shards=tmp_path / "set", batch_size=3, steps=2, log_samples=True)
    write_pair_set(tmp_path / "set", {k: members_of(k, 14, tmp_path) for k in "abc"})
    whole = Trainer(config)
    slots = whole.stream.batch(0, 3)
    lost = slots[1].key
    without = whole.train_step([slots[0], slots[2]])
    broken(tmp_path / "set", lost)
    trainer = run(config)
    records = [json.loads(line) for line in (config.out / SEEN_NAME).read_text().splitlines()]
    assert [r["samples"].count(None) for r in records] == [1, 1] and records[0]["samples"][1] is None and records[1]["first"] == 3
    assert [r["skipped"] for r in read_log(config.out / LOG_NAME)] == [1, 1] and trainer.position == 6
    told = [json.loads(line) for line in (config.out / SKIPPED_NAME).read_text().splitlines()]
    assert [(r["step"], r["sample"]) for r in told] == [(1, lost), (2, lost)] and "holds other bytes" in told[0]["reason"]
    assert losses(config)[0] == pytest.approx(without.loss, rel=1e-6)


def test_where_no_sample_of_a_step_can_be_used_nothing_moves(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, shards=tmp_path / "set", batch_size=1, steps=3, checkpoint_every=1)
    write_pair_set(tmp_path / "set", {k: members_of(k, 14, tmp_path) for k in "ab"})
    lost = Trainer(config).stream.key(1)
    broken(tmp_path / "set", lost)
    trainer = run(config)
    first, second = (load_model(config.out / "checkpoints" / f"step-00000{i}", ema=False).state_dict() for i in (1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first) and trainer.position == 3
    assert [r["step"] for r in read_log(config.out / LOG_NAME)] == [1, 3]
    with pytest.raises(ValueError, match=r"2 .*in a row"):
        broken(tmp_path / "set", Trainer(replace(config, steps=9)).stream.key(0))
        run(replace(config, out=tmp_path / "other", loader=LoaderConfig(max_bad_in_a_row=2)))


def test_latents_that_were_made_before_train_as_pictures_do(config: TrainConfig, tmp_path: Path) -> None:
    """To the rounding of 16 bits; a sample without is encoded as ever, and nobody decodes what is not needed."""
    samples = {k: members_of(k, 14, tmp_path) for k in "abc"}
    pair_set = write_pair_set(tmp_path / "set", samples)
    plain = replace(config, shards=pair_set, batch_size=3, steps=2)
    with pytest.raises(ValueError, match="crosspair latents"):
        Trainer(replace(plain, latents=True))
    write_latents(pair_set, DctCodec(), frame_px=32)
    cached = replace(plain, latents=True, out=tmp_path / "cached")
    assert losses(run(plain).config) == pytest.approx(losses(run(cached).config), abs=2e-3)
    assert losses(plain) != losses(cached)
    trainer = Trainer(replace(cached, steps=3))
    assert trainer.latents is not None
    stream, pictures = EncodedStream(trainer.stream, trainer.latents), trainer.stream.read(0)
    window = stream.slot(0)
    assert isinstance(window, EncodedWindow) and len(window.target) == 0 and window.driving.tobytes() == pictures.driving.tobytes()
    encoded = trainer.examples(window)
    torch.testing.assert_close(encoded.target_FCHW, trainer.examples(pictures).target_FCHW, atol=1e-3, rtol=2e-3)
    torch.testing.assert_close(encoded.source_CHW, trainer.examples(pictures).source_CHW, atol=1e-3, rtol=2e-3)
    del trainer.latents._rows[window.key]
    without = stream.slot(0)
    assert isinstance(without, Window) and without.target.tobytes() == pictures.target.tobytes()
    with pytest.raises(ValueError, match="leave out flip"):
        replace(cached, flip=0.5)


def test_latents_are_read_ahead_and_damaged_ones_count_as_samples_do(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the threads that read the rest, so that no step waits for them; each costs its own place, and many in a row the run."""
    pair_set = write_pair_set(tmp_path / "set", {k: members_of(k, 14, tmp_path) for k in "abc"})
    write_latents(pair_set, DctCodec(), frame_px=32)
    config = replace(config, shards=pair_set, latents=True, batch_size=3, steps=2)
    window, read_by = Latents.window, list[str]()

    def damaged_b(self: Latents, key: str, *args: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        read_by.append(threading.current_thread().name)
        if key == "b":
            raise ValueError("damaged")
        return window(self, key, *args)

    monkeypatch.setattr(Latents, "window", damaged_b)
    run(config)
    assert len(read_by) == 6 and all(name.startswith("stream") for name in read_by)
    told = [json.loads(line) for line in (config.out / SKIPPED_NAME).read_text().splitlines()]
    assert [(r["step"], r["sample"], r["reason"]) for r in told] == [(1, "b", "damaged"), (2, "b", "damaged")]
    monkeypatch.undo()
    for tar in (pair_set / "latents").glob("*.tar"):
        tar.write_bytes(b"\0" * tar.stat().st_size)
    with pytest.raises(ValueError, match=r"4 samples in a row cannot be used, .*latents of . are damaged; take this tar away"):
        run(replace(config, out=tmp_path / "damaged", loader=LoaderConfig(max_bad_in_a_row=4)))


def test_the_prompt_that_training_shows_goes_with_the_model(config: TrainConfig, tmp_path: Path) -> None:
    portrait = config.portrait()
    tokens, pooled = torch.randn(portrait.text_tokens, portrait.text_dim), torch.randn(portrait.pooled_dim)
    (tmp_path / "text.safetensors").write_bytes(encode_text_file(tokens, pooled, prompt="a face", encoders={}))
    told = replace(config, steps=1, text=tmp_path / "text.safetensors")
    run(told)
    export(latest(told), tmp_path / "export")
    for folder in (latest(told), tmp_path / "export"):
        text = load_text(folder, portrait)
        assert torch.equal(text.tokens_BLD[0], tokens) and torch.equal(text.pooled_BD[0], pooled)
    assert losses(told) != losses(run(replace(config, steps=1, out=tmp_path / "untold")).config)
    (tmp_path / "text.safetensors").write_bytes(encode_text_file(tokens, 0 * pooled, prompt="a face", encoders={}))
    with pytest.raises(ValueError, match="text"):
        Trainer(replace(told, steps=2))


def test_what_is_watched_is_written_for_tensorboard(config: TrainConfig) -> None:
    run(replace(config, steps=2, sheet=SheetConfig(steps=1, rows=1, every=1)))
    events = b"".join(p.read_bytes() for p in (config.out / "tensorboard").iterdir())
    assert all(name in events for name in (b"train/loss", b"train/data_wait", b"train/memory_gb", b"sampled"))
    assert sorted(p.name for p in (config.out / "samples").iterdir()) == [
        f"step-00000{i}.{kind}" for i in (1, 2) for kind in ("mp4", "png")
    ]


def test_when_a_machine_is_to_be_taken_away_a_checkpoint_is_written_and_training_goes_on(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    trainer = Trainer(replace(config, steps=6, checkpoint_every=100))

    def leaving() -> bool:
        asked.append(trainer.step)
        return trainer.step >= 4

    monkeypatch.setattr("model.trainer._ASK_EVERY_S", 0.0)
    trainer.train(leaving)
    assert asked == [1, 2, 3, 4]  # and, once it is so, no more
    assert sorted(p.name for p in (config.out / "checkpoints").glob("step-*")) == ["step-000004", "step-000006"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_old_one(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(replace(config, steps=3))
    trainer = Trainer(config)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
    with pytest.raises(ValueError, match=r"partial-step-000006/state: a checkpoint cannot be written; is the disk full.*No space left"):
        trainer.train()
    assert latest(config).name == "step-000003"
