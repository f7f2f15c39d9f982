"""Cut: from a sample's bytes to the pictures of one training window, without decoding the rest of its clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from model.augment import Augmentation, draw_augmentation, mirrored, recoloured
from model.fetch import Check
from model.order import draws
from model.rows import Row
from schemas.outlines import PROFILES, with_profile
from schemas.regions import Regions, masked_driving, rasterise
from schemas.sample import CONTROLS, DRIVING, INFO, REGIONS_MEMBER, SOURCE, TARGET, SampleInfo, decode_controls, decode_image
from schemas.video import decode_video, resized

_PNG = b"\x89PNG\r\n\x1a\n"
_FARTHEST = 64  # frame sides from the picture that an outline may lie: farther ones are no face's


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    frames: int = 8  # of the window: the frames to be made, F in the paper
    history: int = 3  # frames before them, F'
    frame_px: int | None = None  # side that frames are resized to; None: as in the shards
    pixels: Literal["all", "driving"] = "all"  # driving: source and target are not decoded, for who has their latents
    regions: str = "default"  # what is shown of the driving face: a profile of schemas.outlines, tight, default or wide
    mask_dilation: float = 0.01  # region masks grow by this part of the frame's side, so that an outline's error cuts nothing off
    mask_dilation_max: float | None = None  # then by a part drawn between the two for each window
    flip: float = 0.0  # chance that all pictures of a window are mirrored
    colour: float = 0.0  # brightness, contrast and saturation are changed by up to this part, of source and target alike
    mixing: Literal["uniform", "balanced"] = "uniform"  # each window once an epoch; or all performers equally often
    split: str = "train"
    seed: int = 0
    # What follows changes neither order nor windows.
    # Of what is read, beside that each member is the one that the index names, of its size and at its place, which is all of `headers`:
    # checksums of its bytes, which find damage, or digests, which find what somebody has put there, and take about 2 ms a MB.
    check: Check = "checksums"
    cache_dir: Path | None = None  # a folder of this machine for what is read from an object store; None: it is read each time
    cache_gb: float = 10.0  # in all, of all processes
    max_bad_in_a_row: int = 100  # samples of a worker that cannot be used: so many are no accident

    def __post_init__(self) -> None:
        if self.regions not in PROFILES:
            raise ValueError(f"regions: there is no profile {self.regions!r}; there are {', '.join(PROFILES)}")
        for name, known in (("pixels", ("all", "driving")), ("mixing", ("uniform", "balanced")), ("check", get_args(Check))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        most = self.mask_dilation if self.mask_dilation_max is None else self.mask_dilation_max
        for name, good, what in (
            ("frames", self.frames >= 1, "at least 1"),
            ("history", self.history >= 0, "at least 0"),
            ("frame_px", self.frame_px is None or self.frame_px >= 1, "at least 1"),
            ("mask_dilation", 0 <= self.mask_dilation <= 1, "between 0 and 1"),
            ("mask_dilation_max", self.mask_dilation <= most <= 1, "between mask_dilation and 1"),
            ("flip", 0 <= self.flip <= 1, "between 0 and 1"),
            ("colour", 0 <= self.colour < 1, "at least 0 and below 1"),
            ("cache_gb", self.cache_gb > 0, "above 0"),
            ("max_bad_in_a_row", self.max_bad_in_a_row >= 1, "at least 1"),
        ):
            if not good:
                raise ValueError(f"{name} must be {what}, not {getattr(self, name)}")
        if self.flip and self.pixels == "driving":
            raise ValueError("flip: latents that were made before cannot be mirrored; set flip to 0, or pixels to all")

    @property
    def members(self) -> tuple[str, ...]:
        """What a window is cut from."""
        pictures = (SOURCE, TARGET) if self.pixels == "all" else ()
        return (INFO, *pictures, DRIVING, REGIONS_MEMBER, *([CONTROLS] if self.regions != "default" else []))


@dataclass(frozen=True)
class Window:
    """One training example. Pictures are uint8 RGB (..., S, S, 3); whatever was drawn to be done to them is done."""

    key: str
    position: int  # in the stream
    first_frame: int  # of the clip, where `target` begins
    source: np.ndarray  # (S, S, 3), a still of the target's person; (0, S, S, 3) where only driving pixels are asked for
    target: np.ndarray  # (F' + F, S, S, 3): the previous frames, then those to be made; (0, S, S, 3) as above
    driving: np.ndarray  # (F, S, S, 3): eyes, nose and mouth of the driving frames, the rest black
    source_frame: int = -1  # of the clip, which `source` is; -1: it is the sample's own still


@dataclass(frozen=True)
class BadSlot:
    """What takes a window's place whose sample cannot be used."""

    key: str
    position: int
    reason: str


def cut_window(
    members: Mapping[str, bytes], row: Row, position: int, config: StreamConfig, frame_px: int, of: tuple[str | int, ...]
) -> Window:
    """The window that the draws for `of` choose. `row` is the sample's in the index.

    Raises:
        ValueError: the sample is of another format, is not what the index says, or is damaged. Other errors come of damage too, but for
            MemoryError.
    """
    info = SampleInfo.decode(members[INFO])  # refuses other formats
    for what, found, listed in (
        ("key", info.key, row.sample),
        ("frames", info.frames, row.frames),
        ("size_px", info.size_px, row.size_px),
    ):
        if found != listed:
            raise ValueError(f"its {what} is {found!r}, the index says {listed!r}: index and tar are not of one run")
    frames, size_px, length = info.frames, info.size_px, config.history + config.frames
    place, still = (int(x) for x in draws(2, "window", *of))
    first = place % (frames - length + 1)
    source_frame = frame_outside(frames, first, length, still)
    least, most = config.mask_dilation, config.mask_dilation_max
    augmentation = draw_augmentation(config.flip, config.colour, (least, least if most is None else most), of)

    def finished(pictures: np.ndarray) -> np.ndarray:
        small = np.stack([resized(f, frame_px) for f in pictures])
        return mirrored(recoloured(small, augmentation.scene), augmentation.flip)

    source = target = np.empty((0, frame_px, frame_px, 3), np.uint8)
    if config.pixels == "all":
        source = finished(_source(members, source_frame, size_px)[None])[0]
        target = finished(decode_video(members[TARGET], first=first, count=length, size_px=size_px))
    shown = _driving(members, first + config.history, config, frames, size_px, augmentation)
    driving = mirrored(np.stack([resized(f, frame_px) for f in shown]), augmentation.flip)
    return Window(row.sample, position, first, source, target, driving, source_frame)


def frame_outside(frames: int, first: int, length: int, draw: int) -> int:
    """A frame of the clip that is not of the window; -1 where the window covers the clip."""
    outside = frames - length
    if not outside:
        return -1
    frame = draw % outside
    return frame if frame < first else frame + length


def _source(members: Mapping[str, bytes], frame: int, size_px: int) -> np.ndarray:
    if frame >= 0:
        return decode_video(members[TARGET], first=frame, count=1, size_px=size_px)[0]
    png = members[SOURCE]
    # Looked at before it is decoded: a hostile one can be larger than memory.
    if png[:8] != _PNG or png[16:24] != 2 * size_px.to_bytes(4, "big"):
        raise ValueError(f"its still is no PNG of {size_px} x {size_px} px")
    return decode_image(png)


def _driving(
    members: Mapping[str, bytes], first: int, config: StreamConfig, frames: int, size_px: int, augmentation: Augmentation
) -> np.ndarray:
    """Recoloured and masked at the size of the shards, where the outlines are in px."""
    regions = _regions(members[REGIONS_MEMBER], frames, size_px)
    if config.regions != "default":
        regions = with_profile(regions, decode_controls(members[CONTROLS])["driving_points"], config.regions)
    driving = decode_video(members[DRIVING], first=first, count=config.frames, size_px=size_px)
    driving = recoloured(driving, augmentation.driving)
    dilate_px = augmentation.dilation * size_px
    masks = (rasterise(regions, first + t, size_px, dilate_px=dilate_px) for t in range(len(driving)))
    return np.stack([masked_driving(f, m) for f, m in zip(driving, masks, strict=True)])


def _regions(data: bytes, frames: int, size_px: int) -> Regions:
    regions = Regions.decode(data)
    if (regions.outlines.dtype, regions.valid.dtype) != (np.float32, np.bool_):
        raise ValueError(f"outlines are {regions.outlines.dtype} and valid is {regions.valid.dtype}, not float32 and bool")
    if len(regions.valid) != frames:
        raise ValueError(f"regions of {len(regions.valid)} frames for a video of {frames}")
    if not (np.abs(regions.outlines[regions.valid]) <= _FARTHEST * size_px).all():  # nan is not
        raise ValueError("an outline lies nowhere near the picture")
    return regions
