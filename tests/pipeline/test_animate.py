"""`crosspair animate`: one image and one video in, an mp4 out, as long as the driving clip and with its sound."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from faceclips import click, moving_face, noise, photograph, tone, write_clip
from typer.testing import CliRunner, Result

from model.checkpoint import Recipe, save_export
from model.portrait_dit import PortraitConfig, PortraitDiT
from pipeline.cli import app
from schemas.sample import decode_image
from schemas.video import decode_video
from stages.encode import encode_png

FRAMES, FPS, PX = 32, 25, 64
HZ, AAC_FRAME_S = 48_000, 1024 / 48_000
CONFIG = PortraitConfig(layers=1, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=0, frames=8, history=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/, still.png of one person, and clip.mp4 of another with a tone."""
    base = tmp_path_factory.mktemp("animate")
    torch.manual_seed(0)
    recipe = Recipe(model=CONFIG, codec="dct", frame_px=PX, mask_dilation=0.01, shift=3.0, history_trained=True)
    (base / "checkpoint").mkdir()
    save_export(PortraitDiT(CONFIG), recipe, base / "checkpoint")
    (base / "still.png").write_bytes(encode_png(photograph("hopper")))
    write_clip(base / "clip.mp4", moving_face(frames=FRAMES), FPS, sound=tone(FRAMES / FPS))
    return base


def animate(world: Path, out: Path, *more: str, source: str = "still.png", driving: Path | None = None) -> Result:
    given = ["--source", str(world / source), "--driving", str(driving or world / "clip.mp4"), "--out", str(out)]
    quick = ["--steps", "1", "--device", "cpu", "--set", "video.size_px=160"]
    return CliRunner().invoke(app, ["animate", "--checkpoint", str(world / "checkpoint"), *given, *quick, *more], catch_exceptions=True)


@pytest.fixture(scope="module")
def film(world: Path) -> tuple[Path, str]:
    """Made with the controls beside it, and what the command said."""
    result = animate(world, world / "out" / "film.mp4", "--show-controls")
    assert result.exit_code == 0, result.exception
    return world / "out" / "film.mp4", result.stdout


def sound_of(path: Path) -> np.ndarray:
    """float32 (2, N) at 48 kHz."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.rate == HZ
        return np.concatenate([f.to_ndarray() for f in container.decode(stream)], axis=1)


def rate_and_seconds(path: Path) -> tuple[float, float, float]:
    """Frames a second, and how long picture and sound last; 0 without sound."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        lasts = [float(s.duration * s.time_base) for s in (video, *container.streams.audio)]
        return float(video.average_rate), lasts[0], lasts[1] if len(lasts) > 1 else 0.0


def test_a_film_is_as_long_as_its_driving_clip_and_has_its_sound(film: tuple[Path, str]) -> None:
    path, said = film
    assert decode_video(path).shape == (FRAMES, PX, PX, 3)
    rate, picture_s, sound_s = rate_and_seconds(path)
    assert rate == FPS and abs(picture_s - FRAMES / FPS) < 1e-3 and abs(sound_s - FRAMES / FPS) < AAC_FRAME_S
    spectrum = np.abs(np.fft.rfft(sound_of(path)[0, 2000 : 2000 + HZ]))
    assert abs(np.argmax(spectrum) - 440) <= 2
    assert f"driving: {FRAMES} frames, 0.00 s to {FRAMES / FPS:.2f} s" in said
    with av.open(str(path)) as container:
        assert container.metadata["comment"].startswith("synthetic; crosspair ")


def test_controls_lie_beside_the_film_and_follow_the_face(film: tuple[Path, str]) -> None:
    """The face of the clip sways as faceclips says: sideways by 10 px of 320 to either side."""
    masked, still = decode_video(film[0].with_suffix(".driving.mp4")), decode_image(film[0].with_suffix(".source.png").read_bytes())
    assert masked.shape == (FRAMES, PX, PX, 3) and still.shape == (PX, PX, 3)
    shown = masked.max(-1) > 40
    assert (shown.mean((1, 2)) > 0.01).all() and (shown.mean((1, 2)) < 0.25).all()
    x = np.array([np.nonzero(s)[1].mean() for s in shown])
    assert np.corrcoef(x, np.sin(2 * np.pi * np.arange(FRAMES) / 40))[0, 1] > 0.9


def test_a_seed_is_a_film_and_another_seed_another(world: Path, film: tuple[Path, str], tmp_path: Path) -> None:
    for seed, name in (("0", "same.mp4"), ("1", "other.mp4")):
        assert animate(world, tmp_path / name, "--seed", seed).exit_code == 0
    first, again, other = (decode_video(p) for p in (film[0], tmp_path / "same.mp4", tmp_path / "other.mp4"))
    assert np.array_equal(first, again) and np.abs(first.astype(int) - other).mean() > 1
    assert (tmp_path / "same.mp4").read_bytes() == film[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.mp4", "same.mp4"]  # nothing is left behind


def test_the_longest_clip_of_a_video_with_cuts_is_used(world: Path, tmp_path: Path) -> None:
    """27 frames of one person, half a second of nobody, 36 frames of another with a click half a second into them, and sound that ends
    before they do; by a model that was trained without previous frames."""
    shutil.copytree(world / "checkpoint", tmp_path / "checkpoint")
    recipe = tmp_path / "checkpoint" / "portrait.json"
    recipe.write_text(recipe.read_text().replace('"history_trained": true', '"history_trained": false'))
    pictures = itertools.chain(moving_face(frames=27), noise(12), moving_face("hopper", frames=36))
    video = write_clip(tmp_path / "cuts.mp4", pictures, FPS, sound=click(39 / FPS + 0.5, 2.5))
    result = animate(world, tmp_path / "film.mp4", "--checkpoint", str(tmp_path / "checkpoint"), driving=video)
    assert result.exit_code == 0, result.exception
    assert "not trained with previous frames" in result.stdout
    film = tmp_path / "film.mp4"
    assert len(decode_video(film)) == 36 and abs(rate_and_seconds(film)[2] - 36 / FPS) < AAC_FRAME_S
    loud = np.flatnonzero(np.abs(sound_of(film)[0]) > 0.1)
    assert abs(loud[0] / HZ - 0.5) < 0.03 and (loud[-1] - loud[0]) / HZ < 0.06  # the decoder gives what AAC puts before the beginning, too
    assert "driving: 36 frames, 1.56 s to 3.00 s (frames 39 to 74)" in result.stdout and "the longest of 2 clips" in result.stdout


def test_without_a_face_the_file_and_the_remedy_are_named(world: Path, tmp_path: Path) -> None:
    (world / "nobody.png").write_bytes(encode_png(next(iter(noise(1)))))
    nobody = write_clip(tmp_path / "nobody.mp4", noise(30), FPS)
    for result, says in (
        (animate(world, tmp_path / "x.mp4", source="nobody.png"), ("nobody.png: no face", "give an image of one person")),
        (animate(world, tmp_path / "x.mp4", source="none.png"), ("none.png: not there", "give an image")),
        (
            animate(world, tmp_path / "x.mp4", driving=nobody),
            ("nobody.mp4: no face can be followed for 1 s in any of its 1 shots", "lower"),
        ),
        (animate(world, tmp_path / "x.mp4", driving=world / "still.png"), ("still.png", "give a video file")),
    ):
        assert isinstance(result.exception, ValueError) and all(s in str(result.exception) for s in says), result.exception
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--checkpoint", "nowhere"], "nowhere: holds no checkpoint"),
        (["--guidance", "2,2.5"], "three numbers"),
        (["--guidance", "2,much,1"], "guidance.driving"),
        (["--set", "sampler.stepz=3"], "did you mean 'steps'"),
        (["--set", "vidio.fps=30"], "did you mean 'video'"),
        (["--strength", "0.5"], "give a --prompt"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--out", "."], "is a folder; name the mp4"),
        (["--set", "faces.engine=insightface", "--set", "faces.pack=nowhere"], "faces.pack:"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_looked_at(
    world: Path, tmp_path: Path, given: list[str], says: str
) -> None:
    result = animate(world, tmp_path / "x.mp4", *given, driving=tmp_path / "none.mp4")
    assert isinstance(result.exception, ValueError) and says in str(result.exception), result.exception


def test_what_a_film_is_made_of_is_never_written_over(world: Path) -> None:
    shutil.copy(world / "clip.mp4", world / "film.driving.mp4")
    for name, out, driving in (
        ("clip.mp4", "clip.mp4", "clip.mp4"),
        ("still.png", "still.png", "clip.mp4"),
        ("film.driving.mp4", "film.mp4", "film.driving.mp4"),
    ):
        before = (world / name).read_bytes()
        result = animate(world, world / "out" / ".." / out, "--show-controls", driving=world / driving)
        assert isinstance(result.exception, ValueError) and "choose another name" in str(result.exception)
        assert (world / name).read_bytes() == before


def test_a_real_clip(world: Path, shared: Path, tmp_path: Path) -> None:
    """A man at a webcam, 72 frames of 30 a second, with sound: 60 frames of 25."""
    shutil.copy(shared / "realdata" / "images" / "skimage_astronaut.png", world / "astronaut.png")
    clip = shared / "realdata" / "clips" / "pyfeat_single_face.mp4"
    result = animate(world, tmp_path / "film.mp4", "--show-controls", source="astronaut.png", driving=clip)
    assert result.exit_code == 0, result.exception
    assert "driving: 60 frames, 0.00 s to 2.40 s" in result.stdout
    rate, picture_s, sound_s = rate_and_seconds(tmp_path / "film.mp4")
    assert rate == FPS and abs(picture_s - 2.4) < 1e-3 and abs(sound_s - 2.4) < AAC_FRAME_S
    assert len(decode_video(tmp_path / "film.mp4")) == len(decode_video(tmp_path / "film.driving.mp4")) == 60


def test_an_export_animates_as_its_checkpoint_does(world: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(world / "checkpoint"), str(tmp_path / "export")])
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "export").iterdir()} == {"portrait.json", "temporal.safetensors", "transformer"}
    again = CliRunner().invoke(app, ["export", str(world / "checkpoint"), str(tmp_path / "export")])
    assert again.exit_code != 0
