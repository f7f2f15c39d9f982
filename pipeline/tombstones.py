"""Tombstones: what keeps those who were forgotten out of a run, without saying who they were.

    RUN/tables/forgotten.json    {"salt": ..., "graves": [{"on": "2026-11-28", "hashes": [...]}, ...], "content": the digest of both}

A hash is of the run's own random salt and of one name of something that is not to come back: an identity, a URI, the digest of a file's
content, an id. Nobody can read names from hashes, but whoever can read the file can try a name and see whether it is there.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pipeline.sources import file_identity
from schemas.ids import content_digest
from schemas.store import Store
from schemas.units import SourceFile

NAME = "tables/forgotten.json"
_HEX = 32  # of a hash: 128 bits
_PART = "in part\0"  # before the URI or content of a file that shows others, too


@dataclass(frozen=True)
class Tombstones:
    """What was forgotten. `name in tombstones` says whether that is a name of something forgotten."""

    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    graves: tuple[tuple[str, frozenset[str]], ...] = ()  # a day, and the hashes of what was forgotten then
    _known: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def __contains__(self, name: object) -> bool:
        assert isinstance(name, str), name
        if name not in self._known:
            self._known[name] = bool(name) and any(self._hash(name) in hashes for _, hashes in self.graves)
        return self._known[name]

    def __bool__(self) -> bool:
        return bool(self.graves)

    def in_part(self, name: str) -> bool:
        """Whether a file, by its URI or content, shows somebody who was forgotten and others, whose clips stay."""
        return bool(name) and _PART + name in self

    def with_more(self, names: Iterable[str], in_part: Iterable[str] = ()) -> Tombstones:
        new = {n for n in names if n and n not in self} | {_PART + n for n in in_part if n and not self.in_part(n)}
        if not new:
            return self
        grave = (f"{datetime.now(UTC):%Y-%m-%d}", frozenset(map(self._hash, new)))
        return replace(self, graves=(*self.graves, grave), _known={})

    def let_in(self, sources: Iterable[SourceFile]) -> list[SourceFile]:
        """The sources without those forgotten. A file that shows others too is let in, and does not say the name of who was forgotten."""
        kept = [s for s in sources if s.uri not in self and (s.identity not in self or self.in_part(s.uri))]
        return [replace(s, identity=file_identity(s.uri)) if s.identity in self else s for s in kept]

    def _hash(self, name: str) -> str:
        return hashlib.sha256(f"{self.salt}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:_HEX]


def read_tombstones(root: Store) -> Tombstones:
    """Those of a run; none where nobody was ever forgotten. Raises ValueError for a damaged file."""
    try:
        data = root.read(NAME)
    except FileNotFoundError:
        return Tombstones()
    try:
        found = json.loads(data)
        tombstones = Tombstones(str(found["salt"]), tuple((str(g["on"]), frozenset(map(str, g["hashes"]))) for g in found["graves"]))
    except (ValueError, KeyError, TypeError):
        tombstones = None
    if tombstones is None or _encode(tombstones) != data:
        raise ValueError(f"{root.at(NAME)}: damaged; put back a copy of it: without it this run would take in again who was forgotten")
    return tombstones


def write_tombstones(root: Store, tombstones: Tombstones) -> None:
    root.write(NAME, _encode(tombstones))


def _encode(tombstones: Tombstones) -> bytes:
    graves = [{"on": day, "hashes": sorted(hashes)} for day, hashes in tombstones.graves]
    body = json.dumps([tombstones.salt, graves]).encode()
    return json.dumps({"salt": tombstones.salt, "graves": graves, "content": content_digest(body)}, indent=0).encode()
