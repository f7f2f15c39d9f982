"""A perceptual hash: 64 bits that hardly change when a picture is encoded again, and do when it shows something else."""

from __future__ import annotations

import cv2
import numpy as np

BITS = 64
_VIEW, _LOW = 32, 8  # px a side that are looked at; frequencies a side that are kept


def image_hash(picture: np.ndarray) -> int:
    """Hash of uint8 RGB (H, W, 3): bit k tells whether the k-th of the 64 lowest frequencies of its luma lies above their median.

    The scheme is known as pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"). Ours and not
    cv2.img_hash's, whose bits are nobody's promise.
    """
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    low = cv2.dct(cv2.resize(luma, (_VIEW, _VIEW), interpolation=cv2.INTER_AREA))[:_LOW, :_LOW].ravel()
    above = low > np.median(low[1:])  # the first is the mean, far from all others
    return int.from_bytes(np.packbits(above).tobytes(), "big")
