"""Names for things: every id is a digest of what the thing is, so two machines give it the same name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

_ID_BYTES = 10  # 80 bits: no collision to be expected below 10^11 things
_CHUNK_BYTES = 1 << 20
_AT_ONCE = 1 << 18


def digest(*parts: str | int | bytes) -> str:
    """Digest of a sequence of parts, 20 hex characters. Parts are length-prefixed, so ("ab", "c") and ("a", "bc") differ."""
    h = hashlib.blake2b(digest_size=_ID_BYTES)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


def content_digest(data: bytes) -> str:
    """Digest of bytes in memory, equal to `file_digest` of a file that holds them."""
    return hashlib.blake2b(data, digest_size=_ID_BYTES).hexdigest()


def checksum(data: bytes) -> int:
    """xxh3_64 of bytes: finds damage at the speed of memory, 50 times as fast as a digest, but nobody's intent."""
    return xxhash.xxh3_64_intdigest(data)


def file_digest(path: Path) -> str:
    """Digest of a file's content, read in bounded memory."""
    h = hashlib.blake2b(digest_size=_ID_BYTES)
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            h.update(chunk)
    return h.hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's content, hexadecimal, read in bounded memory: as weights are known by in public."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def source_id(uri: str) -> str:
    return digest("source", uri)


def shot_id(source: str, content: str, first_frame: int, last_frame: int) -> str:
    """A shot belongs to its source file: two copies of one file are two sources with shots of their own."""
    return digest("shot", source, content, first_frame, last_frame)


def clip_id(content: str, first_frame: int, last_frame: int, track: int) -> str:
    """`first_frame` and `last_frame` (inclusive) count decoded frames of the source from 0."""
    return digest("clip", content, first_frame, last_frame, track)


def portrait_id(content: str) -> str:
    return digest("portrait", content)


def portrait_id_of_frame(clip: str, frame: int) -> str:
    return digest("portrait", clip, frame)


def pair_id(clip: str, portrait: str) -> str:
    """The same for every engine, so that two pair sets can be compared. It is the sample's key: no dot in it."""
    return digest("pair", clip, portrait)


def pair_digests(clips: np.ndarray, portraits: np.ndarray) -> np.ndarray:
    """The bytes, uint8 (N, 10), of which `pair_id` is the hexadecimal form, for ids as bytes, uint8 (N, L) and (N, M)."""
    columns: list[np.ndarray] = []
    for text in (np.frombuffer(b"pair", np.uint8), clips, portraits):  # as `digest` frames its parts
        columns += [np.frombuffer(text.shape[-1].to_bytes(8, "little"), np.uint8), text]
    length = sum(c.shape[-1] for c in columns)
    blake2b, digests = hashlib.blake2b, []
    for at in range(0, len(clips), _AT_ONCE):
        rows = min(_AT_ONCE, len(clips) - at)
        framed = np.concatenate(
            [np.broadcast_to(c if c.ndim == 1 else c[at : at + rows], (rows, c.shape[-1])) for c in columns], 1
        ).tobytes()
        digests.append(b"".join([blake2b(framed[i : i + length], digest_size=_ID_BYTES).digest() for i in range(0, rows * length, length)]))
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _ID_BYTES)


def fingerprint(name: str, version: int, config: Any, *, weights: tuple[str, ...] = (), upstream: str = "") -> str:
    """What an output depends on besides its unit: stage name and version, config (dataclass or dict), weight digests, upstream."""
    fields = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return digest("fingerprint", name, version, text, *sorted(weights), upstream)


def keyed_order(key: str, seed: int) -> str:
    """A sort key that looks random, is the same everywhere and does not depend on what else is sorted."""
    return digest("order", seed, key)
