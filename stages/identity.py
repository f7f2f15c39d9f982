"""Identity: what a clip or a portrait says of who is in it: a face embedding, and hashes by which a copy of its pictures is known."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from schemas.ids import fingerprint, sha256_of
from schemas.sample import decode_image
from schemas.units import Clip, PortraitUnit
from schemas.video import decode_video
from stages.facealign import align, five_points
from stages.faces import TARGET, TRACK, read_track
from stages.imagehash import image_hash
from stages.outputs import Outputs

if TYPE_CHECKING:
    from stages.facenet import FaceNet


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """An identity network, how it is used, and how alike is alike. Without a network people are told apart by manifest and file."""

    model: str = ""  # an ONNX file, 1x3x112x112 -> 1xD; the user's own, nothing is downloaded
    digest: str = ""  # its sha256: a pin; the run fills in that of the file that it uses, and a worker opens no other
    from_pack: bool = True  # without a model: whether the ArcFace of faces.pack serves, if the pack has one
    normalise: Literal["arcface", "imagenet"] = "arcface"  # how the network was trained to see pixels
    frames: int = 8  # of a clip that are looked at, spread over it
    # thresholds on what is stored: changing one measures nothing again
    min_similarity: float = 0.4  # cosine, mean over all pairs of two people's clips and portraits: from here on they are one person
    min_similarity_in_file: float = 0.25  # the same within one source file, where few people are many
    min_agreement: float = 0.75  # of a clip's frames with their mean, on average; below, its embedding says nothing (strangers, half
    # and half, cannot agree better than about sqrt(1/2))
    near_duplicates: Literal["with_model", "always", "never"] = "with_model"  # whether copies are looked for; without a network, too
    max_hash_distance: float = 3.0  # bits of 64, mean over a clip's frames: up to here two are the same pictures

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError("identity.frames must be at least 1")
        if not all(-1 <= s <= 1 for s in (self.min_similarity, self.min_similarity_in_file, self.min_agreement)):
            raise ValueError("identity.min_similarity, min_similarity_in_file and min_agreement are cosines: -1..1")
        if self.min_similarity_in_file > self.min_similarity:
            raise ValueError("identity.min_similarity_in_file must not lie above identity.min_similarity")

    @property
    def measures(self) -> bool:
        """Whether the stage has anything to do."""
        return bool(self.model) or self.near_duplicates == "always"

    @property
    def finds_duplicates(self) -> bool:
        return self.measures and self.near_duplicates != "never"

    def fingerprint(self, upstream: str) -> str:
        looks: dict[str, Any] = {"frames": self.frames, "normalise": self.normalise if self.model else ""}
        return fingerprint(Identity.name, Identity.version, looks, weights=(self.digest,) if self.model else (), upstream=upstream)


class Identity:
    """Clip or portrait -> what is known of it."""

    name, version = "identity", 1

    def __init__(self, config: IdentityConfig) -> None:
        self.config = config
        self._net = open_network(config)

    def __call__(self, unit: Clip | PortraitUnit, out: Outputs) -> tuple[dict[str, Any], list[Any]]:
        """What was measured, as `Likeness.read` takes it; no files, no children.

        Raises:
            ValueError: a file of the unit is damaged.
        """
        pictures, hashes, embeddings = 0, [], []
        for picture, points in _looks(unit, out, self.config.frames):
            pictures += 1
            face = align(picture, five_points(points))
            hashes.append(image_hash(face))  # of the face: a copy that was encoded again is not cropped to the pixel
            if self._net is not None:
                embeddings.append(self._net(face))
        data: dict[str, Any] = {"looks": pictures, "hashes": "".join(f"{h:016x}" for h in hashes)}
        return data | (_mean(np.stack(embeddings)) if embeddings else {}), []


def open_network(config: IdentityConfig) -> FaceNet | None:
    """The identity network; None without one. Raises ValueError for a file that is not the one that the run began with, or cannot serve."""
    if not config.model:
        return None
    from stages.facenet import FaceNet

    if (found := sha256_of(Path(config.model))) != config.digest:
        raise ValueError(f"{config.model}: sha256 is {found}; the run began with {config.digest}")
    return FaceNet(Path(config.model), config.normalise)


def _looks(unit: Clip | PortraitUnit, out: Outputs, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures uint8 RGB (S, S, 3) of a unit and their mesh points (478, 3)."""
    if isinstance(unit, PortraitUnit):
        points, _ = read_track(out.input(unit.folder, unit.track))
        yield decode_image(out.input(unit.folder, unit.image).read_bytes()), points[unit.frame]
        return
    points, _ = read_track(out.input(unit.folder, unit.file(TRACK)))
    video = out.input(unit.folder, unit.file(TARGET))
    for k in spread(len(points), frames):
        yield decode_video(video, first=k, count=1)[0], points[k]


def spread(frames: int, looks: int) -> list[int]:
    """The middles of `looks` equal parts of a clip; every frame once where there are fewer."""
    return sorted({int((i + 0.5) * frames / looks) for i in range(looks)})


def _mean(embeddings: np.ndarray) -> dict[str, Any]:
    """The mean's direction of unit vectors (N, D), and how near to it they are: by their mean and by the farthest."""
    mean = embeddings.astype(np.float64).mean(0)
    length = np.linalg.norm(mean)
    if not (np.isfinite(length) and length > 0):
        return {"agreement": -1.0, "agreement_min": -1.0}  # the network had nothing to say
    near = embeddings @ (mean / length)
    packed = base64.b64encode((mean / length).astype("<f4").tobytes()).decode()
    return {"embedding": packed, "agreement": round(float(near.mean()), 4), "agreement_min": round(float(near.min()), 4)}


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What the stage measured of a unit.

    Attributes:
        embedding: float32 (D,) of unit length; None where there is no network, or it had nothing to say.
        agreement: cosine of the frames with their mean, on average; a low one means that a clip shows two people, or no face.
        agreement_min: of the frame that is farthest from the mean: low with hands before the face, too.
        hashes: uint64 (looks,), in order of time.
    """

    embedding: np.ndarray | None
    agreement: float
    agreement_min: float
    hashes: np.ndarray

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Likeness:
        """From a record's data."""
        packed, hashes = data.get("embedding"), data.get("hashes", "")
        return cls(
            embedding=np.frombuffer(base64.b64decode(packed), "<f4").astype(np.float32) if packed else None,
            agreement=float(data.get("agreement", -1.0)),
            agreement_min=float(data.get("agreement_min", -1.0)),
            hashes=np.array([int(hashes[i : i + 16], 16) for i in range(0, len(hashes), 16)], np.uint64),
        )
