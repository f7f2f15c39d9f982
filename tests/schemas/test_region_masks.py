"""Outlines to pixels: one convention, and the bytes come back as they went. Motion templates likewise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas.arrays import encode_arrays
from schemas.motion import Motion
from schemas.regions import REGIONS, Regions, masked_driving, pad_outlines, rasterise

NOWHERE = np.full((1, 2), -100.0)


def one_region(points: list[tuple[float, float]], region: int = 3) -> Regions:
    """One frame in which only `region` is valid."""
    outlines = [NOWHERE] * 4
    outlines[region] = np.array(points, np.float32)
    return Regions(pad_outlines(outlines)[None], (np.arange(4) == region)[None])


def pixels(mask: np.ndarray) -> set[tuple[int, int]]:
    """(x, y) of all set pixels."""
    return {(int(x), int(y)) for y, x in zip(*np.nonzero(mask), strict=True)}


def test_a_point_is_the_centre_of_its_pixel() -> None:
    mask = rasterise(one_region([(2, 3), (5, 3), (5, 6), (2, 6)]), 0, 10)[3]
    assert pixels(mask) == {(x, y) for x in range(2, 6) for y in range(3, 7)}


def test_half_pixels_round_to_the_right_and_down() -> None:
    mask = rasterise(one_region([(1.5, 1.5), (4.5, 1.5), (4.5, 3.5), (1.5, 3.5)]), 0, 8)[3]
    assert pixels(mask) == {(x, y) for x in (2, 3, 4, 5) for y in (2, 3, 4)}


def test_a_shut_eye_is_a_line() -> None:
    mask = rasterise(one_region([(2, 4.2), (7, 4.2), (2, 4.2)]), 0, 10)[3]
    assert pixels(mask) == {(x, 4) for x in range(2, 8)}


@given(st.lists(st.tuples(st.floats(0, 15), st.floats(0, 15)), min_size=3, max_size=3))
def test_triangles_cover_the_centres_inside_them(corners: list[tuple[float, float]]) -> None:
    """By the sign of three cross products: all that is well inside, and nothing more than a pixel outside."""
    p = np.rint(np.array(corners) * 16) / 16
    y, x = np.mgrid[:16, :16]
    edges = np.roll(p, -1, 0) - p
    lengths = np.hypot(*edges.T)
    area = edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0]
    assume(lengths.min() >= 1 and abs(area) >= 2)
    side = np.sign(area) * np.stack([(e[0] * (y - a[1]) - e[1] * (x - a[0])) / n for a, e, n in zip(p, edges, lengths, strict=True)])
    mask = rasterise(one_region([tuple(q) for q in p]), 0, 16)[3]
    assert mask[(side > 0.6).all(0)].all()
    assert not mask[(side < -1.1).any(0)].any()


polygons = st.lists(st.tuples(st.floats(-3, 26), st.floats(-3, 26)), min_size=3, max_size=12)


@given(polygons, st.floats(0, 3), st.floats(0, 3))
def test_more_dilation_takes_nothing_away(corners: list[tuple[float, float]], a: float, b: float) -> None:
    little, much = (rasterise(one_region(corners), 0, 24, dilate_px=d)[3] for d in sorted((a, b)))
    assert (little <= much).all()
    assert (rasterise(one_region(corners), 0, 24)[3] <= little).all()


@given(polygons)
def test_an_outline_alone_says_which_pixels(corners: list[tuple[float, float]]) -> None:
    """Where it begins, and which way round it goes, changes a pixel that it just touches at most."""
    masks = [rasterise(one_region(p), 0, 24)[3] for p in (corners, corners[1:] + corners[:1], corners[::-1])]
    for other in masks[1:]:
        assert not (masks[0] ^ other)[~touched(corners)].any()


@given(polygons)
def test_a_mirrored_outline_has_a_mirrored_mask(corners: list[tuple[float, float]]) -> None:
    """Pixel x is pixel S - 1 - x of the mirror image, and so is its centre; only where an outline runs may a tie round otherwise."""
    size = 24
    mask = rasterise(one_region(corners), 0, size)[3]
    turned = rasterise(one_region([(size - 1 - x, y) for x, y in corners]), 0, size)[3][:, ::-1]
    assert not (mask ^ turned)[~touched(corners)].any()
    upside_down = rasterise(one_region([(x, size - 1 - y) for x, y in corners]), 0, size)[3][::-1]
    assert not (mask ^ upside_down)[~touched(corners)].any()


def touched(corners: list[tuple[float, float]], size: int = 24) -> np.ndarray:
    """Pixels whose centre lies within 1.5 px of the outline: the line that is drawn runs between corners rounded to whole px."""
    a = np.array(corners)
    b = np.roll(a, -1, 0)
    at = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)[:, :, None]
    along = (((at - a) * (b - a)).sum(-1) / np.maximum(((b - a) ** 2).sum(-1), 1e-12)).clip(0, 1)
    near: np.ndarray = np.linalg.norm(at - a - along[..., None] * (b - a), axis=-1).min(-1) < 1.5
    return near


def test_a_mirrored_outline_between_the_ties_has_exactly_the_mirrored_mask() -> None:
    """Convex ones with corners on pixel centres, as they are drawn and as masks of mirrored training pictures want them."""
    for corners in ([(3, 4), (12, 2), (15, 9), (6, 14)], [(2, 2), (17, 2), (17, 11), (2, 11)]):
        mask = rasterise(one_region(corners), 0, 20)[3]
        turned = rasterise(one_region([(19 - x, y) for x, y in corners]), 0, 20)[3][:, ::-1]
        assert (mask ^ turned).sum() <= 0.02 * mask.sum()


def test_dilation_reaches_that_far_and_no_further() -> None:
    """A pixel belongs when it lies within `dilate_px` of one that belongs: a disc, not a square."""
    mask = rasterise(one_region([(10, 10), (10, 10), (10, 10)]), 0, 21, dilate_px=3.0)[3]
    y, x = np.mgrid[:21, :21]
    np.testing.assert_array_equal(mask, (x - 10) ** 2 + (y - 10) ** 2 <= 9)


def test_dilation_may_be_a_fraction() -> None:
    dot = one_region([(5, 5), (5, 5), (5, 5)])
    assert len(pixels(rasterise(dot, 0, 11, dilate_px=0.9)[3])) == 1
    assert len(pixels(rasterise(dot, 0, 11, dilate_px=1.0)[3])) == 5
    assert len(pixels(rasterise(dot, 0, 11, dilate_px=1.5)[3])) == 9


def test_padding_adds_nothing() -> None:
    triangle = np.array([(2, 2), (9, 2), (2, 9)], np.float32)
    short = one_region([tuple(p) for p in triangle])
    padded = Regions(np.concatenate([short.outlines, np.repeat(short.outlines[:, :, -1:], 17, 2)], 2), short.valid)
    np.testing.assert_array_equal(rasterise(short, 0, 12), rasterise(padded, 0, 12))


def test_each_region_has_its_own_mask() -> None:
    for region in range(4):
        assert rasterise(one_region([(1, 1), (3, 1), (3, 3)], region), 0, 8).any((1, 2)).tolist() == [r == region for r in range(4)]


def test_an_invalid_region_is_empty_even_when_dilated() -> None:
    region = one_region([(1, 1), (6, 1), (6, 6)])
    hidden = Regions(region.outlines, np.zeros_like(region.valid))
    assert not rasterise(hidden, 0, 8, dilate_px=2).any()


def test_outlines_may_leave_the_frame() -> None:
    assert rasterise(one_region([(-50, -50), (50, -50), (50, 50), (-50, 50)]), 0, 8)[3].all()


def test_the_control_picture_shows_the_regions_alone() -> None:
    frame = np.full((8, 8, 3), 77, np.uint8)
    masks = rasterise(one_region([(2, 2), (4, 2), (4, 4), (2, 4)]), 0, 8)
    picture = masked_driving(frame, masks, background=9)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.where(masks[3][..., None], 77, 9).repeat(3, -1))


def test_regions_come_back_as_they_went() -> None:
    rng = np.random.default_rng(1)
    regions = Regions(rng.normal(size=(5, 4, 20, 2)).astype(np.float32), rng.random((5, 4)) < 0.5)
    back = Regions.decode(regions.encode())
    np.testing.assert_array_equal(back.outlines, regions.outlines)
    np.testing.assert_array_equal(back.valid, regions.valid)
    assert back.outlines.dtype == np.float32 and back.valid.dtype == np.bool_


@pytest.mark.parametrize(
    "arrays",
    [
        {"outlines": np.zeros((2, 4, 3, 2))},
        {"outlines": np.zeros((2, 3, 3, 2)), "valid": np.ones((2, 4), bool)},
        {"outlines": np.zeros((2, 4, 3)), "valid": np.ones((2, 4), bool)},
        {"outlines": np.zeros((2, 4, 3, 2)), "valid": np.ones((3, 4), bool)},
        {"outlines": np.zeros(()), "valid": np.ones(())},
    ],
)
def test_what_are_no_regions_is_a_value_error(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError):
        Regions.decode(encode_arrays(arrays))


def test_regions_stand_in_the_order_of_the_format() -> None:
    assert REGIONS == ("left_eye", "right_eye", "nose", "mouth")


def test_motion_comes_back_as_it_went() -> None:
    motion = Motion("meshwarp", 25.0, 256, {"head.pose": np.eye(3), "points": np.ones((4, 2), np.float32)})
    back = Motion.decode(motion.encode())
    assert (back.engine, back.fps, back.size_px) == ("meshwarp", 25.0, 256)
    assert back.arrays.keys() == motion.arrays.keys()
    np.testing.assert_array_equal(back.arrays["points"], motion.arrays["points"])


def test_what_is_no_motion_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"motion of clip x.*head\.engine"):
        Motion.decode(encode_arrays({"motion.x": np.zeros(3)}), what="motion of clip x")
