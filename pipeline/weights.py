"""The weights of a run: from a models folder to ONNX graphs and the digests that say what they are.

ONNX graphs are used as they stand. Official .pth files are exported once, into a folder that is whole only when its SHA256SUMS stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pipeline.catalogue import NETWORKS, OTHERS, SUMS, Layout, of_layout
from pipeline.graphs import of_one_model, open_graph
from pipeline.models_folder import LIST, POINTER, Folder, is_pointer, read_sums
from schemas.files import flush_to_disk
from schemas.ids import digest, sha256_of
from schemas.store import DiskStore

EXPORT_VERSION = 1  # higher when the graphs that we export compute something else: what was made with older ones is then made again
EXPORT_FILE = "export.json"
_EXPORT_FORMAT = "crosspair-export/1"

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a run uses.

    Attributes:
        folder: holds the ONNX graphs under the catalogue's names.
        digests: role -> sha256 of the file that the user brought; of exported graphs, of the .pth files, and `export`, how they were made.
        sources: the files that the user brought, for `catalogue.forbid_non_commercial`.
    """

    folder: Path
    layout: Layout
    digests: dict[str, str]
    sources: tuple[Path, ...]


def resolve(
    folder: Path,
    *,
    scratch: Path,
    networks: Collection[str] = NETWORKS,
    side: int = 256,
    precision: Precision = "fp32",
    say: Callable[[str], None] = lambda _: None,
) -> Weights:
    """The graphs that a run uses, checked, exported where need be; to be called before anything else.

    Args:
        folder: the user's models folder; never written to.
        scratch: takes exports, each in a folder named by what it is made of.
        networks: roles of the catalogue's onnx layout that the run needs.
        side, precision: of exports; ONNX graphs are used as they stand.
        say: gets a sentence before an export, which takes a minute.

    Raises:
        ValueError: a file that is missing, damaged, of another network, or not as SHA256SUMS says; what was expected, and the remedy.
    """
    there = Folder(folder)
    ready = ready_without_export(there, networks)
    if ready is not None:
        return ready
    sources, made = official_sources(there), _made(side, precision)
    out = scratch / digest("export", *(f"{role}={value}" for role, value in (sources | made).items()))
    if _complete(out) is None:
        say(f"{there.base('official')}: exporting LivePortrait to ONNX in {out}; this takes a minute, and is kept")
        _export(there, out, side=side, precision=precision)
    files = tuple(there.base("official") / w.file for w in of_layout("official").values())
    return Weights(folder=out, layout="official", digests=sources | made, sources=files)


def ready_without_export(there: Folder, networks: Collection[str] = NETWORKS) -> Weights | None:
    """What a run would use; None where it would export the official .pth files, which are all there.

    Raises:
        ValueError: as `resolve`, but for what shows only when .pth files are loaded.
    """
    _not_animals(there)
    there.keep_promises()
    if there.layout == "onnx":
        return _as_they_stand(there, networks)
    official_sources(there)
    return None


def _not_animals(there: Folder) -> None:
    why = OTHERS.get(there.root.resolve().name)
    if why:
        raise ValueError(f"{there.root}: {why}")


def _as_they_stand(there: Folder, networks: Collection[str]) -> Weights:
    base, known = there.base("onnx"), of_layout("onnx")
    missing = [known[role].file for role in networks if not (base / known[role].file).is_file()]
    if missing:
        official = any(there.find(w) for w in of_layout("official").values())
        instead = ". Or take the other .onnx files away, so that the .pth files are used" if official else ""
        origin = known[NETWORKS[0]].origin
        raise ValueError(
            f"{base}: {', '.join(missing)} not found beside the other ONNX graphs. Take it from {origin}{instead}{_cannot_serve(there)}"
        )
    graphs = {role: base / known[role].file for role in networks}
    record = _complete(base, there.sha256)
    if record is not None:  # our own export: it says of what it was made, so that exporting beforehand changes no fingerprint
        digests = record_digests(record)
    else:
        digests = {role: there.sha256(path) for role, path in graphs.items()}
        if any(sha256 not in known[role].digests for role, sha256 in digests.items()):
            for path in graphs.values():
                _no_pointer(path)
            of_one_model({role: open_graph(path, role) for role, path in graphs.items()}, base)
    return Weights(folder=base, layout="onnx", digests=digests, sources=tuple(graphs.values()))


def _cannot_serve(there: Folder) -> str:
    """Of files that people take for those that are missing."""
    refused = {w.file: w.advice for w in of_layout("refused").values() if there.find(w)}
    others = {path.name: why for path, why in there.others().items()}
    return "".join(f". {name} cannot serve: {why}" for name, why in (refused | others).items())


def _no_pointer(path: Path) -> None:
    if is_pointer(path):
        raise ValueError(f"{path}: {POINTER}")


def official_sources(there: Folder) -> dict[str, str]:
    """Role -> sha256 of the official .pth files, which must all be there."""
    base, weights = there.base("official"), of_layout("official")
    missing = [w.file for w in weights.values() if not (base / w.file).is_file()]
    if missing:
        expected = f"Expected LivePortrait's .pth files or ONNX graphs: {LIST}"
        raise ValueError(f"{base}: {', '.join(missing)} not found. {expected}{_cannot_serve(there)}")
    for weight in weights.values():
        _no_pointer(base / weight.file)
    return {role: there.sha256(base / w.file) for role, w in weights.items()}


def export(folder: Path, out: Path, *, side: int = 256, precision: Precision = "fp32") -> dict[str, Any]:
    """Official .pth files to ONNX graphs in `out`, which then serves as a models folder. What export.json says of it.

    Raises:
        ValueError: something wrong with the .pth files, or `out` holds other things.
    """
    there = Folder(folder)
    _not_animals(there)
    there.keep_promises()
    if out.resolve().is_relative_to(there.root.resolve()):
        raise ValueError(f"{out}: lies in {folder}, which is never written to; name a folder elsewhere")
    digests = official_sources(there) | _made(side, precision)
    record = _complete(out) if out.is_dir() else None
    if record is not None and record_digests(record) == digests:
        return record
    others = [p.name for p in out.iterdir() if not _is_ours(p)] if out.is_dir() else []
    if record is not None or others:
        held = "another export" if record is not None else f"other files ({', '.join(sorted(others)[:3])})"
        raise ValueError(f"{out}: holds {held}; name a new folder, or empty it")
    return _export(there, out, side=side, precision=precision)


def _export(there: Folder, out: Path, *, side: int, precision: Precision) -> dict[str, Any]:
    """Graphs first, then what they are made of, then their digests: a folder without SHA256SUMS is half-written, and is done again."""
    import torch

    from model.liveportrait_export import export_liveportrait
    from model.liveportrait_weights import load_liveportrait

    sources, base = official_sources(there), there.base("official")
    networks = load_liveportrait(base)
    for path in [p for p in out.iterdir() if _is_ours(p)] if out.is_dir() else []:
        path.unlink()
    paths = export_liveportrait(networks, out, side=side, precision=precision)
    for path in paths:
        flush_to_disk(path)
    record = {
        "format": _EXPORT_FORMAT,
        "export_version": EXPORT_VERSION,
        "side": side,
        "precision": precision,
        "graphs": {path.name: sha256_of(path) for path in paths},
        "sources": {role: {"file": of_layout("official")[role].file, "sha256": value} for role, value in sources.items()},
        "crosspair": version("crosspair"),
        "torch": torch.__version__,
    }
    DiskStore(out).write(EXPORT_FILE, json.dumps(record, indent=1).encode() + b"\n")
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted([*paths, out / EXPORT_FILE])]
    DiskStore(out).write(SUMS, "".join(lines).encode())
    return record


def _export_names() -> set[str]:
    return {*(w.file for w in of_layout("onnx").values()), EXPORT_FILE, SUMS}


def _is_ours(path: Path) -> bool:
    """What an export writes, its temporary files included."""
    return path.name in _export_names() or ".tmp-" in path.name


def _complete(out: Path, sha256: Callable[[Path], str] = sha256_of) -> dict[str, Any] | None:
    """The record of an export of ours that is whole: export.json and every graph are as SHA256SUMS and export.json say. Else None."""
    try:
        promised = {promise.path: promise.sha256 for promise in read_sums(out)}
    except ValueError:  # damaged itself
        return None
    if not {out / name for name in _export_names() - {SUMS}} <= set(promised):
        return None
    if any(not path.is_file() or sha256(path) != value for path, value in promised.items()):
        return None
    record = json.loads((out / EXPORT_FILE).read_bytes())
    made_here = record.get("format") == _EXPORT_FORMAT and all(promised[out / n] == value for n, value in record["graphs"].items())
    return record if made_here else None


def _made(side: int, precision: str, export_version: int = EXPORT_VERSION) -> dict[str, str]:
    """How an export is made; the precision apart, since the motion network has one only."""
    return {"export": f"version {export_version}, {side} px", "precision": precision}


def record_digests(record: dict[str, Any]) -> dict[str, str]:
    """`Weights.digests` of graphs that we exported: those of the .pth files, and how the export was made."""
    made = _made(record["side"], record["precision"], record["export_version"])
    return {role: source["sha256"] for role, source in record["sources"].items()} | made
