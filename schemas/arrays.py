"""Named arrays as .npz bytes: no pickle in either direction, the same bytes for the same arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np

_MAX_ARRAY_BYTES = 1 << 30  # an array that claims more is hostile or damaged


def encode_arrays(arrays: Mapping[str, np.ndarray], *, deflate: bool = True) -> bytes:
    """.npz, deflated unless told otherwise. Names are written in sorted order with a fixed date, so equal arrays give equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
            info.external_attr = 0o444 << 16
            archive.writestr(info, member.getvalue())
    return out.getvalue()


def decode_arrays(data: bytes, *, what: str = "npz") -> dict[str, np.ndarray]:
    """The arrays of an .npz.

    Raises:
        ValueError: damaged data, pickled objects or an implausible size; names `what`.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy") or info.file_size > _MAX_ARRAY_BYTES:
                    raise ValueError(f"member {info.filename!r} is no array of a plausible size")
                with archive.open(info) as member:
                    arrays[info.filename[:-4]] = np.lib.format.read_array(member, allow_pickle=False)
    except Exception as e:  # zip, deflate and npy each have their own words for damage, down to MemoryError for a hostile shape
        raise ValueError(f"{what}: not a readable .npz without pickle: {e}") from e
    return arrays
