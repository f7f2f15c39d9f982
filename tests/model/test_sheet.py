"""The contact sheet shows the pictures in their own colours, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from model.codec import DctCodec
from model.portrait_dit import PortraitConfig, PortraitDiT
from model.sheet import _TILE_PX, write_sheet
from model.stream import Window
from schemas.sample import decode_image

CONFIG = PortraitConfig(layers=1, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=0, frames=2, history=1)
RED, GREEN, BLUE = (200, 0, 0), (0, 150, 0), (0, 0, 100)


def plain(frames: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (frames, 32, 32, 3)).copy()


def draw(path: Path) -> None:
    window = Window("k", 0, 0, source=plain(1, RED)[0], target=plain(3, GREEN), driving=plain(2, BLUE))
    write_sheet(path, PortraitDiT(CONFIG), DctCodec(), window, steps=1, rows=2, seed=0, shift=3.0)


def test_each_column_has_its_picture_in_its_colour(tmp_path: Path) -> None:
    draw(tmp_path / "sheet.png")
    picture = decode_image((tmp_path / "sheet.png").read_bytes())
    for row in (1, 2):
        middle = picture[-row * _TILE_PX + _TILE_PX // 2]
        columns = [tuple(int(c) for c in middle[i * _TILE_PX + _TILE_PX // 2]) for i in range(3)]
        assert columns == [RED, BLUE, GREEN]


def test_a_kill_while_drawing_leaves_the_old_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def dies(self: Path, data: bytes) -> int:
        with self.open("wb") as f:
            f.write(data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        draw(path)
    assert path.read_bytes() == b"old"
