"""Writes a small pair set's folder as pack does, with pictures that move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import skimage.data
from sampleinfo import ANY_INFO

from schemas.regions import REGIONS, Regions
from schemas.sample import (
    DRIVING,
    INDEX_NAME,
    INDEX_SCHEMA,
    INFO,
    REGIONS_MEMBER,
    SOURCE,
    TARGET,
    SampleInfo,
    finish_tar,
    index_row,
    write_tar_sample,
)
from stages.encode import VideoWriter

SIZE_PX = 96
FRAMES = {"a": 40, "b": 36, "c": 48, "short": 5}


def photo() -> np.ndarray:
    """A portrait photo, uint8 RGB (512, 512, 3)."""
    return skimage.data.astronaut()


def moving(frames: int, phase: float) -> np.ndarray:
    """The astronaut's face, swaying: uint8 RGB (frames, SIZE_PX, SIZE_PX, 3)."""
    face = cv2.resize(photo()[:256, 96:352], (SIZE_PX * 3 // 2,) * 2, interpolation=cv2.INTER_AREA)
    out = []
    for t in range(frames):
        x, y = (int(SIZE_PX / 4 * (1 + np.sin(0.3 * t + phase + k))) for k in (0, 1))
        out.append(face[y : y + SIZE_PX, x : x + SIZE_PX])
    return np.stack(out)


def regions_of(frames: int) -> Regions:
    """Squares where eyes, nose and mouth could be, elsewhere in each frame; the nose is never seen."""
    centres = np.array([(60, 36), (36, 36), (48, 52), (48, 70)], np.float32)
    square = np.array([(-6, -6), (6, -6), (6, 6), (-6, 6)], np.float32)
    sway = np.stack([8 * np.sin(0.7 * np.arange(frames)), np.arange(frames) % 13], 1).astype(np.float32)
    outlines = sway[:, None, None] + (centres[:, None] + square)
    valid = np.ones((frames, len(REGIONS)), bool)
    valid[:, 2] = False
    return Regions(outlines, valid)


def video(path: Path, frames: np.ndarray, *, size_px: int = SIZE_PX) -> bytes:
    with VideoWriter(path, 25, size_px) as writer:
        for frame in frames:
            writer.write(frame)
    return path.read_bytes()


INFO_TEMPLATE = replace(ANY_INFO, size_px=SIZE_PX)


def members_of(key: str, frames: int, scratch: Path) -> dict[str, bytes]:
    target = moving(frames, phase=len(key))
    _, png = cv2.imencode(".png", target[0][..., ::-1])
    return {
        SOURCE: png.tobytes(),
        TARGET: video(scratch / "t.mp4", target),
        DRIVING: video(scratch / "d.mp4", 255 - target),
        REGIONS_MEMBER: regions_of(frames).encode(),
        INFO: replace(INFO_TEMPLATE, key=key, frames=frames).encode(),
    }


def write_pair_set(folder: Path, samples: dict[str, dict[str, bytes]], *, keys: Sequence[str] | None = None) -> Path:
    """One tar and its index, as pack leaves them; `keys` are what both call samples whose own word is another, or none."""
    folder.mkdir(parents=True)
    rows = []
    with (folder / "train-000000.tar").open("wb") as tar:
        for i, (name, members) in enumerate(samples.items()):
            info = SampleInfo.decode(members[INFO]) if b"crosspair/1" in members[INFO] else replace(INFO_TEMPLATE, key=name, frames=12)
            key = keys[i] if keys else info.key
            entries = write_tar_sample(tar, key, members)
            rows.append(index_row(replace(info, key=key), "train-000000.tar", entries, {}))
        finish_tar(tar)
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / INDEX_NAME)
    return folder
