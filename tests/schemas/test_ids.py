"""Names of things: stable for ever, and different for different things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import clip_id, content_digest, digest, file_digest, fingerprint, keyed_order, pair_id, shot_id, source_id

parts = st.lists(st.text(max_size=8) | st.integers() | st.binary(max_size=8), max_size=4)


def test_a_digest_never_changes() -> None:
    """Runs on disk are found again by these digests: a change here orphans all of them."""
    assert digest("pair", "a", 1) == "441740d252e221d6e5dd"
    assert source_id("/a/b.mp4") == "61b0c51d34d39f652ed6"
    assert fingerprint("faces", 1, {"b": 2, "a": [1.5, "x"]}, weights=("w",), upstream="u") == "232ca6bcce510441f2f3"
    assert keyed_order("key", 7) == "25dcf534a7dff7dd1da8"
    assert content_digest(b"crosspair") == "fe0f1d1b60cca2a03929"


@given(parts, parts)
def test_no_two_sequences_of_parts_share_a_digest(a: list, b: list) -> None:
    def as_bytes(sequence: list) -> list[bytes]:
        return [p if isinstance(p, bytes) else str(p).encode() for p in sequence]

    assert (digest(*a) == digest(*b)) == (as_bytes(a) == as_bytes(b))


def test_parts_are_length_prefixed() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")


def test_an_id_is_a_key_of_a_sample() -> None:
    """No dot, so that webdataset splits names where the member begins."""
    assert set(pair_id("clip", "portrait")) <= set("0123456789abcdef")
    assert len(pair_id("clip", "portrait")) == 20


def test_kinds_of_things_do_not_collide() -> None:
    assert len({source_id("x"), shot_id("x", "x", 0, 0), clip_id("x", 0, 0, 0), pair_id("x", "x"), digest("x")}) == 5


def test_file_and_content_digest_agree(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # more than one chunk
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == content_digest(data)


def test_names_that_are_no_utf8_have_digests() -> None:
    assert digest("caf\udce9.mp4") != digest("caf.mp4")


@dataclass(frozen=True)
class _Config:
    a: int = 1
    b: float = 0.5


@pytest.mark.parametrize(
    "other",
    [
        fingerprint("stage", 2, _Config()),
        fingerprint("other", 1, _Config()),
        fingerprint("stage", 1, _Config(a=2)),
        fingerprint("stage", 1, _Config(), weights=("w",)),
        fingerprint("stage", 1, _Config(), upstream="u"),
    ],
)
def test_a_fingerprint_hears_of_all_that_matters(other: str) -> None:
    assert fingerprint("stage", 1, _Config()) != other


def test_a_fingerprint_ignores_the_order_of_keys_and_weights() -> None:
    assert fingerprint("s", 1, {"a": 1, "b": 2}, weights=("v", "w")) == fingerprint("s", 1, {"b": 2, "a": 1}, weights=("w", "v"))
    assert fingerprint("s", 1, _Config()) == fingerprint("s", 1, {"a": 1, "b": 0.5})
