"""The contact sheet shows the pictures in their own colours, whole or not at all."""

from pathlib import Path

import av
import numpy as np
import pytest

from model.codec import DctCodec
from model.portrait_dit import PortraitConfig, PortraitDiT, no_text
from model.sheet import _TILE_PX, sample_shown, sheet, write_film, write_png
from model.stream import Window
from schemas.sample import decode_image

CONFIG = PortraitConfig(layers=1, heads=2, head_dim=16, position_grid=12, sample_size=8, dual_layers=0, frames=2, history=1)
RED, GREEN, BLUE = (200, 0, 0), (0, 150, 0), (0, 0, 100)


def plain(frames: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (frames, 32, 32, 3)).copy()


def drawn() -> tuple[Window, np.ndarray]:
    window = Window("k", 0, 0, source=plain(1, RED)[0], target=plain(3, GREEN), driving=plain(2, BLUE), source_frame=-1)
    return window, sample_shown(PortraitDiT(CONFIG), DctCodec(), window, no_text(CONFIG, 1), steps=1, seed=0, shift=3.0)


def test_each_column_has_its_picture_in_its_colour(tmp_path: Path) -> None:
    window, sampled = drawn()
    write_png(tmp_path / "sheet.png", sheet(window, sampled, rows=2))
    write_film(tmp_path / "film.mp4", window, sampled, 25)
    picture = decode_image((tmp_path / "sheet.png").read_bytes())
    for row in (1, 2):
        middle = picture[-row * _TILE_PX + _TILE_PX // 2]
        columns = [tuple(int(c) for c in middle[i * _TILE_PX + _TILE_PX // 2]) for i in range(3)]
        assert columns == [RED, BLUE, GREEN]
    with av.open(str(tmp_path / "film.mp4")) as file:
        film = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    assert len(film) == len(sampled) == 2
    for i, colour in enumerate((RED, BLUE, GREEN)):
        assert np.abs(film[1][_TILE_PX // 2, i * _TILE_PX + _TILE_PX // 2].astype(int) - colour).max() < 12


def test_a_kill_while_drawing_leaves_the_old_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def dies(self: Path, data: bytes) -> int:
        with self.open("wb") as f:
            f.write(data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        write_png(path, np.zeros((9, 9, 3), np.uint8))
    assert path.read_bytes() == b"old"
