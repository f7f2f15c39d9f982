"""The text encoders: the same numbers as diffusers' own pipeline, from tiny encoders of random weights, and files that read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer
from typer.testing import CliRunner

from model.portrait_config import TINY
from model.sd35 import new_base
from model.text import encode_text_file, read_prompt
from model.text_encoders import encode_prompt
from pipeline.cli import app

WIDTH, POOLED = 48, 10 + 12
PROMPT = "a smiling person"
CPU = torch.device("cpu")


def tokenizers(folder: Path) -> None:
    """Letters for CLIP, whose second tokenizer pads with another token, as SD3's does, in its files; words for T5."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["!", *letters, *(f"{c}</w>" for c in letters), "sm", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        (folder / name).mkdir()
        (folder / name / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / name / "merges.txt").write_text("#version: 0.2\ns m\n")
        about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad, "unk_token": "<|endoftext|>"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(about))
    words = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁smil", "ing", "▁person", *letters]
    T5Tokenizer([(w, -float(i)) for i, w in enumerate(words)], extra_ids=0).save_pretrained(folder / "tokenizer_3")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD3.5's folder but for the VAE, tiny."""
    folder = tmp_path_factory.mktemp("sd35")
    tokenizers(folder)
    torch.manual_seed(0)
    for name, hidden, projection in (("text_encoder", 16, 10), ("text_encoder_2", 24, 12)):
        config = CLIPTextConfig(
            vocab_size=56,
            hidden_size=hidden,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=projection,
            hidden_act="quick_gelu" if projection == 10 else "gelu",
            bos_token_id=54,
            eos_token_id=55,
        )
        CLIPTextModelWithProjection(config).save_pretrained(folder / name)
    t5 = T5Config(vocab_size=40, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder_3")
    new_base(replace(TINY, layers=1, dual_layers=1, text_dim=WIDTH, pooled_dim=POOLED)).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def without_t5(base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "without"
    folder.mkdir()
    for part in base.iterdir():
        if not part.name.endswith("_3"):
            (folder / part.name).symlink_to(part)
    return folder


def of_diffusers(base: Path, prompt: str, t5_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    def encoder(kind: type, name: str) -> object:
        return kind.from_pretrained(base / name).eval() if (base / name).is_dir() else None  # type: ignore[attr-defined]

    from diffusers import SD3Transformer2DModel

    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(base / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=encoder(CLIPTextModelWithProjection, "text_encoder"),
        text_encoder_2=encoder(CLIPTextModelWithProjection, "text_encoder_2"),
        text_encoder_3=encoder(T5EncoderModel, "text_encoder_3"),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(base / "tokenizer_2"),
        tokenizer_3=T5Tokenizer.from_pretrained(base / "tokenizer_3") if (base / "tokenizer_3").is_dir() else None,
    )
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            prompt, None, None, device=CPU, do_classifier_free_guidance=False, max_sequence_length=t5_tokens
        )
    return tokens[0], pooled[0]


@pytest.mark.parametrize("tokens", [154, 333])
@pytest.mark.parametrize("prompt", ["", PROMPT, "very " * 300])
def test_the_embedding_is_that_of_diffusers(base: Path, prompt: str, tokens: int) -> None:
    said: list[str] = []
    found = encode_prompt(base, prompt, tokens=tokens, device=CPU, say=said.append)
    wanted = of_diffusers(base, prompt, tokens - 77)
    assert found.tokens_LD.shape == (tokens, WIDTH) and found.pooled_D.shape == (POOLED,)
    torch.testing.assert_close(found.tokens_LD, wanted[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.pooled_D, wanted[1], atol=1e-6, rtol=1e-5)
    assert found.tokens_LD[:77, :40].std() > 0.1 and not found.tokens_LD[:77, 40:].any() and found.tokens_LD[77:].std() > 0.1
    assert len(said) == (3 if prompt.startswith("very") else 0) and all("sees the first" in s for s in said)


def test_prompts_differ(base: Path) -> None:
    one, other = (encode_prompt(base, p, tokens=154, device=CPU) for p in ("", PROMPT))
    for part in (slice(0, 77), slice(77, 154)):
        assert (one.tokens_LD[part] - other.tokens_LD[part]).abs().max() > 0.01
    assert (one.pooled_D - other.pooled_D).abs().max() > 0.01


def test_a_missing_t5_is_zeros(base: Path, without_t5: Path) -> None:
    said: list[str] = []
    found, whole = (
        encode_prompt(without_t5, PROMPT, tokens=333, device=CPU, say=said.append),
        encode_prompt(base, PROMPT, tokens=333, device=CPU),
    )
    wanted = of_diffusers(without_t5, PROMPT, 256)
    torch.testing.assert_close(found.tokens_LD, wanted[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(found.tokens_LD[:77], whole.tokens_LD[:77]) and not found.tokens_LD[77:].any()
    assert found.encoders == {**whole.encoders, "text_encoder_3": ""} and len(said) == 1 and "zeros" in said[0]


def test_the_command_writes_a_file_that_reads_back(base: Path, tmp_path: Path) -> None:
    def command(*more: str) -> Path:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        done = CliRunner().invoke(app, ["text-embedding", "--base", str(base), "--prompt", PROMPT, "--out", str(out), *more])
        assert done.exit_code == 0, done.output
        return out

    file = command()
    found = read_prompt(file, replace(TINY, text_dim=WIDTH, text_tokens=154, pooled_dim=POOLED))
    wanted = encode_prompt(base, PROMPT, tokens=154, device=CPU)
    assert torch.equal(found.tokens_BLD[0], wanted.tokens_LD) and torch.equal(found.pooled_BD[0], wanted.pooled_D)
    with safe_open(file, "pt") as f:
        about = json.loads(f.metadata()["crosspair"])
    assert about == {"format": "crosspair.text/1", "prompt": PROMPT, "encoders": wanted.encoders}
    assert set(about["encoders"]) == {"text_encoder", "text_encoder_2", "text_encoder_3"} and all(about["encoders"].values())
    assert command().read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match="`crosspair text-embedding --tokens 154`"):
        read_prompt(command("--tokens", "333"), replace(TINY, text_dim=WIDTH, text_tokens=154, pooled_dim=POOLED))
    half = read_prompt(command("--dtype", "bfloat16"), replace(TINY, text_dim=WIDTH, text_tokens=154, pooled_dim=POOLED))
    assert 0 < (half.tokens_BLD - found.tokens_BLD).abs().max() < 0.1


def test_what_does_not_serve_is_named(base: Path, without_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tokens 100: there are 154 and 333"):
        encode_prompt(base, "", tokens=100, device=CPU)
    with pytest.raises(ValueError, match=r"text_encoder: no whole text encoder.*diffusers' layout"):
        encode_prompt(tmp_path, "", tokens=154, device=CPU)
    (without_t5 / "text_encoder_2").unlink()
    (without_t5 / "text_encoder_2").mkdir()
    weights = (base / "text_encoder_2" / "model.safetensors").read_bytes()
    (without_t5 / "text_encoder_2" / "config.json").write_bytes((base / "text_encoder_2" / "config.json").read_bytes())
    (without_t5 / "text_encoder_2" / "model.safetensors").write_bytes(weights[:3000])
    with pytest.raises(ValueError, match=r"text_encoder_2: no whole CLIPTextModelWithProjection"):
        encode_prompt(without_t5, "", tokens=154, device=CPU)
    for arguments in ([], ["somewhere", "--out", "x"]):
        error = CliRunner().invoke(app, ["text-embedding", "--base", str(base), *arguments]).exception
        assert isinstance(error, ValueError) and "either SHARDS" in str(error)


def test_a_file_says_what_made_it_in_one_order() -> None:
    tokens, pooled = torch.ones(2, 3), torch.zeros(4)
    files = {encode_text_file(tokens, pooled, prompt="x", encoders={"b": "1", "a": "2"}) for _ in range(5)}
    assert len(files) == 1
