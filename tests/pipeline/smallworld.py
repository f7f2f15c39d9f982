"""A small world of good and bad input, and what must become of it."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from faceclips import face_clip, moving_face, noise, photograph, tone, write_clip
from PIL import Image

from pipeline.books import Summary
from pipeline.config import RunConfig
from pipeline.run import run
from schemas.config import parse_config

PEOPLE = {"a_astronaut": "collins", "b_hopper": "hopper", "c_mirrored": "collins, mirrored", "panorama": "hopper"}
EXPECTED = {  # file name -> outcome and reason
    "a_astronaut.mp4": ("done", ""),
    "b_hopper.mp4": ("done", ""),
    "c_mirrored.mp4": ("done", ""),
    "d copy of 'a'.mp4": ("rejected", "duplicate"),
    "empty.mp4": ("rejected", "empty_file"),
    "link.mp4": ("rejected", "symlink"),
    "noface.mp4": ("rejected", "no_face"),
    "panorama.mp4": ("done", ""),
    "text.mp4": ("rejected", "not_media"),
    "three.mp4": ("rejected", "too_short"),
    "truncated.mp4": ("rejected", "truncated"),
    "vanished.mp4": ("rejected", "missing"),
    "group.png": ("rejected", "several_faces"),
    "hopper.png": ("done", ""),
    "noface.png": ("rejected", "no_face"),
    "text.png": ("rejected", "not_media"),
}


class Silent:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.units: list[tuple[str, str, str]] = []
        self.said: list[str] = []

    def step(self, name: str, units: int) -> None:
        self.steps.append((name, units))

    def unit(self, stage: str, outcome: str, reason: str) -> None:
        self.units.append((stage, outcome, reason))

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class World:
    """`base` holds clips/, images/ and clips.csv; `config` runs over them into base / run."""

    base: Path
    config: RunConfig

    def run(self, name: str, watcher: Silent | None = None, until: str = "pack", **changes: object) -> Summary:
        return run(replace(self.config, run=name, **changes), base=self.base, watcher=watcher or Silent(), until=until)  # type: ignore[arg-type]


CONFIG = {
    "run": "run",
    "clips": ["clips.csv", "clips"],
    "portraits": ["images"],
    "video": {"size_px": 128},
    "reenactor": {"meshwarp": {"calibration_rounds": 0}},  # half the work; how true pairs are is not asked here
    "quality": {"max_target_likeness": 1.0},  # hopper.png shows a performer under another name, which would be found out
    "shards": {"max_mb": 1},
    "ray": {"mode": "local"},  # a tenth of the time; what is asked of Ray itself is on Ray
}


@dataclass(frozen=True)
class Finished:
    root: Path
    summary: Summary
    watcher: Silent

    @property
    def shards(self) -> Path:
        return self.root / "shards" / "meshwarp"


def make_world(base: Path) -> World:
    """Writes the input below `base`."""
    clips, images = base / "clips", base / "images"
    face_clip(clips / "a_astronaut.mp4", "astronaut", 32)
    face_clip(clips / "b_hopper.mp4", "hopper", 36)
    write_clip(clips / "c_mirrored.mp4", moving_face("astronaut_mirrored", 40), 30)
    shutil.copy(clips / "a_astronaut.mp4", clips / "d copy of 'a'.mp4")
    (clips / "empty.mp4").touch()
    (clips / "link.mp4").symlink_to(clips / "a_astronaut.mp4")
    write_clip(clips / "noface.mp4", noise(30), sound=tone(1.2))
    write_clip(clips / "panorama.mp4", moving_face("hopper", 32, wh=(640, 160), face_px=128))
    (clips / "text.mp4").write_text("This is a text.\n" * 20)
    write_clip(clips / "three.mp4", moving_face(frames=3))
    whole = face_clip(clips / "truncated.mp4", frames=30).read_bytes()
    (clips / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    images.mkdir()
    Image.fromarray(photograph("hopper")).save(images / "hopper.png")
    Image.fromarray(np.concatenate([photograph("astronaut")[:400, 80:380]] * 2, 1)).save(images / "group.png")
    Image.fromarray(next(noise(1))).save(images / "noface.png")
    (images / "text.png").write_text("no picture")
    with (base / "clips.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["uri", "identity", "licence", "consent"])
        writer.writerows([f"clips/{name}.mp4", who, "public domain", "not needed"] for name, who in PEOPLE.items())
        writer.writerow(["clips/vanished.mp4", "nobody", "", ""])
    return World(base, parse_config(RunConfig, CONFIG))
