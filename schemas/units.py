"""The units of work: what one row of a Ray Data graph names. Small, typed, and JSON all the way; frames never travel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """What the user gave: a clip or an image, with what the manifest says of it ("" = nothing).

    `identity` is the manifest's, or else a name made of the file's; on a clip or a portrait, who is in it as far as is known by now.
    """

    id: str
    uri: str  # absolute local path, or s3://bucket/key
    identity: str
    licence: str
    consent: str


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A span of a source without a cut. Frames are counted from 0 as decoded; `last_frame` belongs to it."""

    id: str
    source: SourceFile
    content: str  # digest of the source's content
    first_frame: int
    last_frame: int
    folder: str  # ingest's artifact folder, relative to the run: timing.npz and, with sound, sound.s16
    has_sound: bool  # of the source


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One person's continuous track, normalised: one fixed crop, constant rate."""

    id: str
    shot: str
    source: SourceFile
    content: str
    track: int
    first_frame: int  # of the source
    last_frame: int
    source_fps: float
    frames: int  # of the clip
    fps: int
    size_px: int
    crop: tuple[int, int, int]  # x0, y0, side in px of the upright source frame
    still_frame: int  # which frame of the clip KEY.source.png is
    has_audio: bool
    folder: str  # faces' artifact folder, relative to the run
    digests: dict[str, str]  # file name in the folder -> digest
    scores: dict[str, float]
    still_scores: dict[str, float]  # of the still alone

    def file(self, name: str) -> str:
        """Name in `folder` of one of the clip's files: target.mp4, source.png, audio.flac, track.npz."""
        return f"{self.id}.{name}"


@dataclass(frozen=True, kw_only=True)
class PortraitUnit:
    """A still of a B: an image file, or a frame of a clip (then `clip` names it)."""

    id: str
    source: SourceFile
    clip: str
    content: str
    size_px: int
    folder: str
    image: str  # file names in `folder`
    track: str
    frame: int  # row of the track's points that belongs to the image
    digests: dict[str, str]
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Performance:
    """A clip whose motion is to be made, and the portraits that wait for it."""

    id: str  # the clip's
    clip: Clip
    portraits: list[PortraitUnit]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One clip driven onto one portrait."""

    id: str
    clip: Clip
    portrait: PortraitUnit
    motion_folder: str  # where the clip's motion.npz is; "" until it is made


@dataclass(frozen=True, kw_only=True)
class Driving:
    """What reenact made of a pair."""

    id: str
    pair: Pair
    folder: str
    digests: dict[str, str]
    generator: str
    generator_version: int
    fingerprint: str
    crosspair_version: str = ""  # that made it; "" in records of versions that did not say
