"""A clip's motion as a reenactor sees it: computed once per clip, reused for every appearance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.arrays import decode_arrays, encode_arrays


@dataclass(frozen=True)
class Motion:
    """A motion template.

    Attributes:
        engine: name of the engine that made it and alone may read `arrays`.
        fps: frames per second.
        size_px: side of the square target frame that the motion lives in.
        arrays: named arrays whose first axis is time (T) or that are constants of the clip; about 1 to 6 KB a frame.
    """

    engine: str
    fps: float
    size_px: int
    arrays: dict[str, np.ndarray]

    def encode(self) -> bytes:
        head: dict[str, np.ndarray] = {
            "head.engine": np.frombuffer(self.engine.encode(), np.uint8),
            "head.fps": np.float64(self.fps).reshape(1),
            "head.size_px": np.int64(self.size_px).reshape(1),
        }
        return encode_arrays({**head, **{f"motion.{k}": v for k, v in self.arrays.items()}})

    @staticmethod
    def decode(data: bytes, *, what: str = "motion template") -> Motion:
        raw = decode_arrays(data, what=what)
        try:
            return Motion(
                engine=raw["head.engine"].tobytes().decode(),
                fps=float(raw["head.fps"][0]),
                size_px=int(raw["head.size_px"][0]),
                arrays={k.removeprefix("motion."): v for k, v in raw.items() if k.startswith("motion.")},
            )
        except KeyError as e:
            raise ValueError(f"{what}: no motion template: {e} is missing") from e
