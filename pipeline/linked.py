"""Linked: who was found to be one person, kept with the run, so that nobody is linked again while nothing has changed.

    RUN/cache/linked.json    {"inputs": ..., "content": ..., "people": [...]}: the digests of what it came of and of what it says

Nothing depends on the file: one that is missing, damaged or of other inputs is as good as none, and what it tells is found out anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipeline import identities, linkage
from pipeline.identities import Person, Sighting, link
from pipeline.storage import write_changed
from schemas.ids import content_digest, digest
from schemas.store import Store

_FILE = "cache/linked.json"


@dataclass(frozen=True)
class Linked:
    """People without identities, and the digest of all that they came of."""

    inputs: str
    people: list[Person]


def linked(sightings: Sequence[Sighting], min_similarity: float, min_similarity_in_file: float, before: Linked | None) -> Linked:
    """As `link`; what `before` says, if it is of the same inputs."""
    inputs = _digest_of(sightings, min_similarity, min_similarity_in_file)
    if before is not None and before.inputs == inputs:
        return before
    return Linked(inputs, link(sightings, min_similarity=min_similarity, min_similarity_in_file=min_similarity_in_file))


def read_linked(root: Store) -> Linked | None:
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        found = json.loads(root.read(_FILE))
        if content_digest(_json(found["people"])) == found["content"]:
            return Linked(found["inputs"], [_person(p) for p in found["people"]])
    return None


def write_linked(root: Store, linked: Linked) -> None:
    people = [asdict(p) for p in linked.people]
    write_changed(root, _FILE, _json({"inputs": linked.inputs, "content": content_digest(_json(people)), "people": people}))


def _person(p: dict) -> Person:
    doubts = tuple((name, how) for name, how in p["doubts"])
    return Person(**{**p, "members": tuple(p["members"]), "files": tuple(p["files"]), "doubts": doubts})


def _json(thing: object) -> bytes:
    return json.dumps(thing, separators=(",", ":"), sort_keys=True).encode()


def _digest_of(sightings: Sequence[Sighting], *thresholds: float) -> str:
    parts: list[str | bytes] = [_code(), *map(repr, thresholds)]
    for s in sorted(sightings, key=lambda s: s.id):
        parts.append(_json([s.id, s.source, s.uri, s.person, s.named, s.first_frame, s.last_frame, s.track]))
        parts.append(b"" if s.embedding is None else s.embedding.tobytes())
    return digest(*parts)


@cache
def _code() -> str:
    """Of what links: another version may link otherwise."""
    return digest(np.__version__, *(Path(str(module.__file__)).read_bytes() for module in (identities, linkage)))
