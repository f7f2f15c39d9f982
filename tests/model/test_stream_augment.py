"""What is drawn for a window: the same for all its pictures, the same whoever reads it, and nothing at all unless asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pairset import members_of, write_pair_set

from model.augment import draw_augmentation
from model.stream import ShardStream, StreamConfig, Window
from schemas.sample import DRIVING, SOURCE, TARGET, decode_image
from schemas.video import decode_video

CONFIG = StreamConfig(frames=4, history=2)
PICTURES = ("source", "target", "driving")


def windows(folder: Path, config: StreamConfig, count: int = 12) -> list[Window]:
    stream = ShardStream(folder, config)
    return [stream.read(p) for p in range(count)]


@pytest.fixture(scope="module")
def plain(pair_set: Path) -> list[Window]:
    return windows(pair_set, CONFIG)


def matrix(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The affine map (4, 3) of colours that is nearest to what was done, from pixels that did not reach an end of the range."""
    inside = ((after > 3) & (after < 252)).all(-1)
    found, *_ = np.linalg.lstsq(np.c_[before[inside], np.ones(inside.sum())], after[inside].astype(float), rcond=None)
    return found


def test_a_mirrored_window_is_mirrored_as_a_whole(pair_set: Path, plain: list[Window]) -> None:
    for a, b in zip(plain, windows(pair_set, replace(CONFIG, flip=1.0)), strict=True):
        assert (a.key, a.first_frame, a.source_frame) == (b.key, b.first_frame, b.source_frame)
        assert all(np.array_equal(getattr(a, name)[..., ::-1, :], getattr(b, name)) for name in PICTURES)
        assert all(getattr(b, name).flags.c_contiguous for name in PICTURES)


def test_chance_is_of_the_sample_and_the_epoch_alone(pair_set: Path, plain: list[Window]) -> None:
    config = replace(CONFIG, flip=0.5, colour=0.2, mask_dilation_max=0.1)
    stream = ShardStream(pair_set, config)
    again = [stream.read(p) for p in reversed(range(12))][::-1]
    for a, b in zip(windows(pair_set, config), again, strict=True):
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in PICTURES)
    flipped = [
        np.array_equal(a.source[:, ::-1], b.source) for a, b in zip(plain, windows(pair_set, replace(CONFIG, flip=0.5)), strict=True)
    ]
    assert 0 < sum(flipped) < 12
    seeds = {tuple(draw_augmentation(0.5, 0, (0, 0), (seed, e, "k")).flip for e in range(8)) for seed in range(4)}
    assert len(seeds) == 4
    drawn = [draw_augmentation(0.25, 0.1, (0.01, 0.05), (0, e, "k")) for e in range(2000)]
    assert 0.2 < np.mean([d.flip for d in drawn]) < 0.3
    assert 0.01 <= min(d.dilation for d in drawn) < 0.012 and 0.048 < max(d.dilation for d in drawn) <= 0.05


def test_source_and_target_change_colour_alike_and_the_driving_person_otherwise(pair_set: Path, plain: list[Window]) -> None:
    matrices = []
    for a, b in zip(plain, windows(pair_set, replace(CONFIG, colour=0.3)), strict=True):
        of_target = matrix(a.target, b.target)
        expected = np.clip(np.concatenate([a.source, np.ones_like(a.source[..., :1])], -1) @ of_target, 0, 255)
        assert np.abs(expected - b.source).max() <= 2  # each is rounded
        hidden = (a.driving == 0).all(-1)
        assert not b.driving[hidden].any()  # black stays black outside the regions
        shown = ~hidden & (a.driving > 0).all(-1)
        of_driving = matrix(a.driving[shown], b.driving[shown])
        assert np.abs(of_driving - of_target).max() > 0.02
        matrices.append(of_target)
    spread = np.ptp([m[:3].sum() / 3 for m in matrices])  # brightness times contrast
    assert 0.1 < spread < 0.3 * 4


def test_masks_grow_by_what_is_drawn(pair_set: Path, plain: list[Window]) -> None:
    least, most = plain, windows(pair_set, replace(CONFIG, mask_dilation=0.1))
    drawn = windows(pair_set, replace(CONFIG, mask_dilation=0.01, mask_dilation_max=0.1))
    shown = [[(w.driving > 0).any(-1).sum() for w in some] for some in (least, drawn, most)]
    assert all(a <= b <= c for a, b, c in zip(*shown, strict=True)) and len({b / a for a, b, _ in zip(*shown, strict=True)}) > 4


def test_the_frame_that_the_source_is_is_told(pair_set: Path, tmp_path: Path, plain: list[Window]) -> None:
    members = members_of("k", 12, tmp_path)
    folder = write_pair_set(tmp_path / "set", {"k": members})
    target = decode_video(members[TARGET])
    for window in windows(folder, CONFIG, 6):
        assert np.array_equal(window.source, target[window.source_frame])
    whole = ShardStream(folder, StreamConfig(frames=10, history=2)).read(0)
    assert whole.source_frame == -1 and np.array_equal(whole.source, decode_image(members[SOURCE]))


def test_who_has_the_latents_decodes_the_driving_video_alone(pair_set: Path, tmp_path: Path, plain: list[Window]) -> None:
    config = replace(CONFIG, pixels="driving", frame_px=32)
    for a, b in zip(windows(pair_set, replace(CONFIG, frame_px=32)), windows(pair_set, config), strict=True):
        assert (a.key, a.first_frame, a.source_frame) == (b.key, b.first_frame, b.source_frame)
        assert np.array_equal(a.driving, b.driving) and a.driving.any()
        assert b.source.shape == b.target.shape == (0, 32, 32, 3) and b.source.dtype == np.uint8
    members = members_of("k", 12, tmp_path) | {TARGET: b"?", SOURCE: b"?"}
    assert ShardStream(write_pair_set(tmp_path / "set", {"k": members}), config).read(0).driving.any()
    damaged = members | {DRIVING: b"?"}
    with pytest.raises(ValueError, match="not a readable"):
        ShardStream(write_pair_set(tmp_path / "damaged", {"k": damaged}), config).read(0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"flip": 1.1}, "flip must be between 0 and 1"),
        ({"colour": 1.0}, "colour must be"),
        ({"mask_dilation_max": 0.001}, "mask_dilation_max must be between mask_dilation and 1"),
        ({"mask_dilation": -0.1}, "mask_dilation must be"),
        ({"mixing": "fair"}, "mixing must be one of uniform, balanced, not 'fair'"),
        ({"pixels": "none"}, "pixels must be one of"),
        ({"pixels": "driving", "flip": 0.5}, "cannot be mirrored"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"cache_gb": 0}, "cache_gb must be above 0"),
        ({"max_bad_in_a_row": 0}, "max_bad_in_a_row must be at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(CONFIG, **change)
