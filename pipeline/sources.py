"""Listing: which files and objects are the input, and what a manifest says of them. Each one listed is a unit from here on."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.object_entries import match_objects, suffix_of
from schemas.ids import source_id
from schemas.objects import is_object, read_object
from schemas.store import open_store
from schemas.units import SourceFile

CLIP_SUFFIXES = frozenset(
    f".{s}" for s in ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "264", "h264", "ogv", "ogg", "flv", "3gp")
)
IMAGE_SUFFIXES = frozenset(f".{s}" for s in ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp"))
_SAID = {"identity", "licence", "consent"}
_TEXT = {name: pa.string() for name in ("uri", *_SAID)}  # "007" is a name, not a number
Listed = tuple[list[SourceFile], bool]
"""What an entry lists, and whether it is a manifest that speaks of it."""


def _read_csv(file: Path | pa.BufferReader) -> pa.Table:
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(file, parse_options=parse, convert_options=pyarrow.csv.ConvertOptions(column_types=_TEXT))


_MANIFESTS = {".csv": _read_csv, ".jsonl": pyarrow.json.read_json, ".parquet": pq.read_table}


def list_sources(entries: str | Iterable[str], suffixes: frozenset[str], base: Path, *, must_match: bool = True) -> list[SourceFile]:
    """Source files of globs, folders and manifests, relative to `base` or in S3, sorted by URI.

    As `listing`.
    """
    return listing(entries, suffixes, base, must_match=must_match).sources


class Listing(NamedTuple):
    """Source files, and the ids of those of which a manifest speaks: it has a column for what it says, if only to say nothing now."""

    sources: list[SourceFile]
    told: set[str]


def listing(entries: str | Iterable[str], suffixes: frozenset[str], base: Path, *, must_match: bool = True) -> Listing:
    """One listed twice counts once, with what a manifest says of it. `must_match`: an entry that matches nothing is an error.

    Raises:
        ValueError: an entry that matches nothing or may not be listed, a damaged manifest or one without `uri`, two manifests that
            contradict each other; objects, and no s3fs.
        StorageError: an object store fails.
    """
    found: dict[str, SourceFile] = {}
    told: set[str] = set()
    for entry in [entries] if isinstance(entries, str) else entries:
        listed, speaks = _expand_object(entry, suffixes, must_match) if is_object(entry) else _expand(entry, suffixes, base)
        told |= {s.id for s in listed if speaks}
        if not listed and must_match:
            raise ValueError(f"{entry}: matches no file; give a folder, a glob or a manifest, relative to {base} or in s3://")
        for source in listed:
            known = found.get(source.uri)
            if known is None or says_nothing(known):
                found[source.uri] = source
            elif known != source and not says_nothing(source):
                raise ValueError(f"{entry}: says other things of {source.uri} than an entry before it; keep one of them")
    if (an_object := next(filter(is_object, found), None)) is not None:
        open_store(an_object)  # says so where s3fs is missing; else each unit would
    return Listing(sorted(found.values(), key=lambda s: s.uri), told)


def _expand(entry: str, suffixes: frozenset[str], base: Path) -> Listed:
    path = base / Path(entry).expanduser()
    if path.suffix.lower() in _MANIFESTS and path.is_file():
        return _manifest(str(path))
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and not p.is_dir() and not p.name.startswith("."))
        return [_source(_uri(p)) for p in files], False
    if path.exists() or path.is_symlink():
        return [_source(_uri(path))], False
    pattern = str(Path(entry).expanduser())  # `base` is no part of it: brackets in it are brackets
    matches = sorted(base / p for p in glob.glob(pattern, root_dir=base, recursive=True))  # noqa: PTH207 -- Path.glob takes no absolute one
    return [_source(_uri(p)) for p in matches if not p.is_dir()], False


def _expand_object(entry: str, suffixes: frozenset[str], must_match: bool) -> Listed:
    uris = match_objects(entry, suffixes, must_exist=must_match)
    return _manifest(entry) if uris == [entry] and suffix_of(entry) in _MANIFESTS else ([_source(u) for u in uris], False)


def absolute(entry: str, base: Path) -> str:
    """The URI of an entry of the config that is a single file."""
    return entry if is_object(entry) else _uri(base / Path(entry).expanduser())


def file_identity(uri: str) -> str:
    """What somebody unknown is called, whom only a file shows."""
    return f"{Path(uri).stem}-{source_id(uri)[:6]}"


def is_named(source: SourceFile) -> bool:
    """Whether a manifest says who it is; else its file's name stands for somebody unknown."""
    return source.identity != file_identity(source.uri)


def says_nothing(source: SourceFile) -> bool:
    """Whether this is all that a bare file name gives."""
    return source == _source(source.uri)


def _manifest(place: str) -> Listed:
    try:
        table: pa.Table = _MANIFESTS[suffix_of(place)](pa.BufferReader(read_object(place)) if is_object(place) else Path(place))
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{place}: not a readable manifest: {e}") from e
    if "uri" not in table.column_names:
        raise ValueError(f"{place}: a manifest needs a column `uri`; it has {table.column_names}")
    rows = table.to_pylist()
    if not all(r["uri"] for r in rows):
        raise ValueError(f"{place}: a row has no uri")
    return [_source(_from(place, str(r["uri"])), r) for r in rows], bool(_SAID & set(table.column_names))


def _from(manifest: str, uri: str) -> str:
    """What a manifest calls `uri`: a name relative to it, unless it is an absolute one."""
    if is_object(uri):
        return uri
    if not is_object(manifest) or uri.startswith("/"):
        return _uri(Path(manifest).parent / uri)
    parts = manifest.split("/")[:-1]
    for part in uri.split("/"):
        if part == ".." and len(parts) > 3:  # s3://bucket stays
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _uri(path: Path) -> str:
    # A name that is no UTF-8 can stand in no table: such a file is listed under an escaped name, and ends as missing.
    return os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")


def _source(uri: str, about: dict[str, Any] | None = None) -> SourceFile:
    about = {k: "" if v is None else str(v) for k, v in (about or {}).items()}
    name = source_id(uri)
    return SourceFile(
        id=name,
        uri=uri,
        identity=about.get("identity") or file_identity(uri),
        licence=about.get("licence", ""),
        consent=about.get("consent", ""),
    )
