"""Stills in: untrusted image files, upright in RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from schemas.outcomes import Rejection
from stages.media import check_readable


def read_image(path: Path) -> np.ndarray:
    """A still, upright (EXIF), uint8 RGB (H, W, 3). Transparency is laid on mid-grey; CMYK and 16 bit are converted.

    Raises:
        Rejection: missing, unreadable, symlink, empty_file, not_media, frame_too_large.
    """
    from PIL import Image, ImageOps

    check_readable(path)
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "TIFF", "BMP")) as image:
            if image.width * image.height > 64_000_000:
                raise Rejection("frame_too_large", f"{path}: {image.width} x {image.height} pixels")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bit grey: Pillow would clip it, not scale it
                upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (128, 128, 128, 255)), rgba)
            return np.asarray(upright.convert("RGB"))
    except Rejection:
        raise
    except Image.DecompressionBombError as e:
        raise Rejection("frame_too_large", f"{path}: {e}") from e
    except MemoryError:
        raise
    except Exception as e:  # damage shows in many ways: Pillow's readers raise SyntaxError, struct.error and more
        if isinstance(e, OSError) and e.errno:  # the disk's, not Pillow's
            raise
        raise Rejection("not_media", f"{path}: {e}") from e
