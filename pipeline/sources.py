"""Listing: which files are the input, and what a manifest says of them. Every file listed is a unit from here on."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from schemas.ids import source_id
from schemas.units import SourceFile

CLIP_SUFFIXES = frozenset(
    f".{s}" for s in ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "264", "h264", "ogv", "ogg", "flv", "3gp")
)
IMAGE_SUFFIXES = frozenset(f".{s}" for s in ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp"))
_TEXT = {name: pa.string() for name in ("uri", "identity", "licence", "consent")}  # "007" is a name, not a number


def _read_csv(path: Path) -> pa.Table:
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(path, parse_options=parse, convert_options=pyarrow.csv.ConvertOptions(column_types=_TEXT))


_MANIFESTS = {".csv": _read_csv, ".jsonl": pyarrow.json.read_json, ".parquet": pq.read_table}


def list_sources(entries: str | Iterable[str], suffixes: frozenset[str], base: Path, *, must_match: bool = True) -> list[SourceFile]:
    """Source files of globs, folders and manifests, relative to `base`, sorted by URI.

    One listed twice counts once, with what a manifest says of it. `must_match`: an entry that matches nothing is an error.

    Raises:
        ValueError: an entry that matches nothing, a damaged manifest or one without `uri`, two manifests that contradict each other.
    """
    found: dict[str, SourceFile] = {}
    for entry in [entries] if isinstance(entries, str) else entries:
        listed = list(_expand(entry, suffixes, base))
        if not listed and must_match:
            raise ValueError(f"{entry}: matches no file; give a folder, a glob or a manifest, relative to {base}")
        for source in listed:
            known = found.get(source.uri)
            if known is None or says_nothing(known):
                found[source.uri] = source
            elif known != source and not says_nothing(source):
                raise ValueError(f"{entry}: says other things of {source.uri} than an entry before it; keep one of them")
    return sorted(found.values(), key=lambda s: s.uri)


def _expand(entry: str, suffixes: frozenset[str], base: Path) -> Iterable[SourceFile]:
    path = base / Path(entry).expanduser()
    if path.suffix.lower() in _MANIFESTS and path.is_file():
        return _manifest(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and not p.is_dir() and not p.name.startswith("."))
        return [_source(p) for p in files]
    if path.exists() or path.is_symlink():
        return [_source(path)]
    pattern = str(Path(entry).expanduser())  # `base` is no part of it: brackets in it are brackets
    matches = sorted(base / p for p in glob.glob(pattern, root_dir=base, recursive=True))  # noqa: PTH207 -- Path.glob takes no absolute one
    return [_source(p) for p in matches if not p.is_dir()]


def says_nothing(source: SourceFile) -> bool:
    """Whether this is all that a bare file name gives."""
    return source == _source(Path(source.uri))


def _manifest(path: Path) -> list[SourceFile]:
    try:
        table: pa.Table = _MANIFESTS[path.suffix.lower()](path)
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{path}: not a readable manifest: {e}") from e
    if "uri" not in table.column_names:
        raise ValueError(f"{path}: a manifest needs a column `uri`; it has {table.column_names}")
    rows = table.to_pylist()
    if not all(r["uri"] for r in rows):
        raise ValueError(f"{path}: a row has no uri")
    return [_source(path.parent / str(r["uri"]), r) for r in rows]


def _source(path: Path, about: dict[str, Any] | None = None) -> SourceFile:
    # A name that is no UTF-8 can stand in no table: such a file is listed under an escaped name, and ends as missing.
    uri = os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")
    about = {k: "" if v is None else str(v) for k, v in (about or {}).items()}
    name = source_id(uri)
    return SourceFile(
        id=name,
        uri=uri,
        identity=about.get("identity") or f"{Path(uri).stem}-{name[:6]}",
        licence=about.get("licence", ""),
        consent=about.get("consent", ""),
    )
