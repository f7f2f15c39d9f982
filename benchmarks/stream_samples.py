"""A pair set of many keys and few contents, as the benchmarks of reading want it: pictures that move, encoded as a run encodes them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.ids import digest
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
from stages.encode import VideoWriter, encode_png

FPS, CONTENTS = 25, 6
_REAL = ("lp_d0.mp4", "lp_d3.mp4", "lp_s20.mp4", "pyfeat_single_face.mp4", "echomimic_driven_c.mp4", "media3_sample.mp4")


def write_samples(folder: Path, *, samples: int, size_px: int, frames: int, tars: int) -> Path:
    """`samples` keys in `tars` tars and their index, of CONTENTS contents by turns."""
    folder.mkdir(parents=True)
    contents = [_content(k, size_px, frames) for k in range(min(CONTENTS, samples))]
    rows = []
    for t in range(tars):
        name = f"train-{t:06d}.tar"
        with (folder / name).open("wb") as out:
            for k in range(t, samples, tars):
                info = _info(digest("benchmark", k), size_px, frames)
                members = contents[k % len(contents)] | {INFO: info.encode()}
                rows.append(index_row(info, name, write_tar_sample(out, info.key, members), {}))
            finish_tar(out)
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / INDEX_NAME)
    return folder


def _content(k: int, size_px: int, frames: int) -> dict[str, bytes]:
    target, driving = _pictures(k, size_px, frames), _pictures(k + 1, size_px, frames)
    return {
        SOURCE: encode_png(target[0]),
        TARGET: encoded(target),
        DRIVING: encoded(driving),
        REGIONS_MEMBER: _regions(size_px, frames).encode(),
    }


def encoded(pictures: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, FPS, pictures.shape[1]) as writer:
            for picture in pictures:
                writer.write(picture)
        return path.read_bytes()


def _pictures(k: int, size_px: int, frames: int) -> np.ndarray:
    """uint8 RGB (frames, size_px, size_px, 3): a real clip where CROSSPAIR_SHARED has them, its middle square; else a photo that sways."""
    shared = os.environ.get("CROSSPAIR_SHARED")
    clip = Path(shared or "") / "realdata" / "clips" / _REAL[k % len(_REAL)]
    return _real(clip, size_px, frames) if shared and clip.is_file() else _swaying(k, size_px, frames)


def _real(clip: Path, size_px: int, frames: int) -> np.ndarray:
    capture, found = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), []
    while len(found) < frames and (picture := capture.read()[1]) is not None:
        side = min(picture.shape[:2])
        y, x = ((n - side) // 2 for n in picture.shape[:2])
        square = cv2.resize(picture[y : y + side, x : x + side], (size_px, size_px), interpolation=cv2.INTER_AREA)
        found.append(cv2.cvtColor(square, cv2.COLOR_BGR2RGB))
    found += found[::-1] * (frames // len(found))  # a short clip goes back and forth
    return np.stack(found[:frames])


def _swaying(k: int, size_px: int, frames: int) -> np.ndarray:
    import skimage.data

    photo, rng, made = skimage.data.astronaut()[:300, 70:370], np.random.default_rng(k), []
    for t in range(frames):
        angle, shift = 4 * np.sin(0.2 * t + k), 8 * np.sin(0.15 * t + 2 * k)
        turn = cv2.getRotationMatrix2D((150, 150), angle, size_px / 250)
        turn[:, 2] += size_px / 2 - 150 + shift
        moved = cv2.warpAffine(photo, turn, (size_px, size_px), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        made.append(np.clip(moved + rng.normal(0, 1.5, moved.shape), 0, 255).astype(np.uint8))
    return np.stack(made)


def _regions(size_px: int, frames: int) -> Regions:
    """Ellipses about where eyes, nose and mouth are, which follow a sway."""
    centres = np.array([(0.62, 0.42), (0.38, 0.42), (0.5, 0.55), (0.5, 0.7)]) * size_px
    radii = np.array([(0.07, 0.03), (0.07, 0.03), (0.06, 0.12), (0.12, 0.06)]) * size_px
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ellipses = centres[:, None] + radii[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    sway = 0.02 * size_px * np.stack([np.sin(0.2 * np.arange(frames)), np.cos(0.2 * np.arange(frames))], 1)
    return Regions((sway[:, None, None] + ellipses).astype(np.float32), np.ones((frames, len(REGIONS)), bool))


def _info(key: str, size_px: int, frames: int) -> SampleInfo:
    return SampleInfo(
        key=key,
        clip=digest("clip", key),
        portrait=digest("portrait", key),
        performer="person-a",
        appearance="person-b",
        split="train",
        generation=0,
        source_digest="",
        source_first_frame=0,
        source_last_frame=frames - 1,
        source_fps=float(FPS),
        licence="",
        consent="",
        appearance_licence="",
        appearance_consent="",
        generator="benchmark",
        generator_version=1,
        clip_fingerprint="",
        driving_fingerprint="",
        frames=frames,
        fps=FPS,
        size_px=size_px,
        has_audio=False,
    )
