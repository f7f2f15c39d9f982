"""Arrays as bytes: the same bytes for the same arrays, and nothing hostile comes in."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from schemas.arrays import decode_arrays, encode_arrays

dtypes = st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_])
some_arrays = st.dictionaries(
    st.text("abcdefghij_.", min_size=1, max_size=8),
    dtypes.flatmap(lambda t: npst.arrays(t, npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))),
    max_size=4,
)


@given(some_arrays, st.booleans())
def test_arrays_come_back_as_they_went(arrays: dict[str, np.ndarray], deflate: bool) -> None:
    back = decode_arrays(encode_arrays(arrays, deflate=deflate))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_bytes_depend_on_the_arrays_alone() -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.ones(3, np.uint8)
    assert encode_arrays({"a": a, "b": b}) == encode_arrays({"b": b, "a": np.asfortranarray(a)})


def test_numpy_reads_it() -> None:
    with np.load(io.BytesIO(encode_arrays({"x": np.arange(3)})), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["x"], [0, 1, 2])


def test_objects_are_not_written() -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        encode_arrays({"x": np.array([{}], object)})


def _zip(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was run",))


def test_pickles_are_refused_and_not_run() -> None:
    out = io.BytesIO()
    np.save(out, np.array([_Bomb()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="members: not a readable"):
        decode_arrays(_zip(x=out.getvalue()), what="members")


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip at all", pickle.dumps([1]), _zip(x=b"no array"), _zip(x=b"")])
def test_what_is_no_npz_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ValueError, match="KEY: not a readable"):
        decode_arrays(data, what="KEY")


def test_a_member_that_is_no_array_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("evil.txt", b"x")
    with pytest.raises(ValueError, match="evil"):
        decode_arrays(out.getvalue())


def _header(shape: str, dtype: str = "<f8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(100000, 100000, 100000)", "(268435456,)", "(-1,)", "(99999999999999999999,)"])
def test_an_array_may_not_claim_more_than_it_brings(shape: str) -> None:
    with pytest.raises(ValueError):
        decode_arrays(_zip(x=_header(shape) + b"\0" * 64))


def test_a_zip_bomb_is_refused_before_it_unfolds() -> None:
    data = bytearray(encode_arrays({"x": np.zeros(8)}))
    at = data.rindex(b"PK\x01\x02") + 24  # the uncompressed size in the central directory
    data[at : at + 4] = struct.pack("<I", (1 << 31))
    with pytest.raises(ValueError, match="plausible"):
        decode_arrays(bytes(data))


@settings(max_examples=400)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_damage_is_a_value_error_or_harmless(at: int, flip: int) -> None:
    """No other exception gets out, whichever byte is wrong."""
    data = bytearray(encode_arrays({"points": np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), "valid": np.ones(9, bool)}))
    data[at % len(data)] ^= flip
    try:
        decode_arrays(bytes(data))
    except ValueError:
        return


@given(st.integers(0, 10_000))
def test_an_early_end_is_a_value_error(length: int) -> None:
    data = encode_arrays({"points": np.random.default_rng(0).normal(size=(40, 3))})
    with pytest.raises(ValueError):
        decode_arrays(data[: length % len(data)])
