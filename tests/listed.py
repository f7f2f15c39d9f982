"""Source files of what a config would name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.sources import listing
from schemas.units import SourceFile


def list_sources(entries: str | Iterable[str], suffixes: frozenset[str], base: Path, *, must_match: bool = True) -> list[SourceFile]:
    return listing(entries, suffixes, base, must_match=must_match).sources
