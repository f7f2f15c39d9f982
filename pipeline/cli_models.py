"""`crosspair models`: which weights are expected where, whether a folder has them, and their export to ONNX."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.catalogue import CATALOGUE, FOLDERS, NETWORKS, OTHERS, Layout, Weight
from pipeline.graphs import open_graph
from pipeline.models_folder import Folder, Row, survey

models_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
ModelsPath = Annotated[Path, typer.Argument(metavar="DIR", help="a models folder")]

_WIDE = 125  # columns from which on every row has room for its sentence; below, that goes under the file's name
_TITLES: dict[Layout, str] = {
    "official": "official .pth files",
    "onnx": "ONNX graphs",
    "optional": "optional",
    "refused": "refused",
    "unused": "known, and not needed",
}
_HEADINGS: dict[Layout, str] = {
    "official": "Either the official .pth files, which a run exports once. From {origin}, into {folders}:",
    "onnx": "Or ONNX graphs, which are used as they stand. From {origin}, into {folders}:",
    "optional": "Optional, beside either. From {origin}:",
    "refused": "Refused:",
    "unused": "Known, and not needed. From {origin}:",
}


@models_app.command("list")
def list_() -> None:
    """Which files are expected where: size, licence, where they come from."""
    console = Console(highlight=False)
    for layout, heading in _HEADINGS.items():
        weights = [w for w in CATALOGUE if w.layout == layout]
        folders = " or ".join(f"DIR/{f}".rstrip("/") for f in FOLDERS[layout])
        console.print(heading.format(origin=weights[0].origin, folders=folders), style="bold")
        rows = [(w.file, [_size(w.size_bytes), w.licence], _what(w)) for w in weights]
        console.print(_table(console, ["file", "size", "licence"], rows, "what it is"))
        _say_once(console, ((w.file, w.advice) for w in weights if w.advice))
        console.print()
    console.print("Recognised, and of no use to a run:", style="bold")
    _say_once(console, OTHERS.items())
    console.print("\n`crosspair models check DIR` says what of this a folder has.")


@models_app.command()
def check(folder: ModelsPath) -> None:
    """Exit 0 only if a run could use the folder: opens what is there, and says what is missing, damaged or unknown."""
    console = Console(highlight=False)
    there, rows = Folder(folder), survey(folder)
    for layout, title in _TITLES.items():
        some = [row for row in rows if row.layout == layout]
        if some:
            where = f" in {there.base(layout)}" if layout in ("official", "onnx") else ""
            licences = {row.licence for row in some}
            licence = f", {licences.pop()}" if len(licences) == 1 else ""  # once for all
            console.print(f"{title}{where}{licence}", style="bold", markup=False, soft_wrap=True)
            cells = [(row.file, [row.state, _size(row.size_bytes), row.digest], "" if licence else row.licence) for row in some]
            console.print(_table(console, ["file", "state", "size", "digest"], cells, "licence"), "")
    opened, problems = _open(there)
    for line in opened:
        console.print(line, markup=False, soft_wrap=True)
    _say_once(console, ((_with_sizes(row), row.next) for row in rows if _is_news(row)))
    for problem in problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)
    console.print(_verdict(folder, problems), markup=False, soft_wrap=True)
    raise typer.Exit(bool(problems))


@models_app.command()
def export(
    folder: ModelsPath,
    to: Annotated[Path, typer.Option(metavar="OUT", help="takes the graphs, and then serves as a models folder itself")],
    side: Annotated[int, typer.Option(help="of the pictures that the networks see, px")] = 256,
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="fp16: half the memory, and not the same numbers")] = "fp32",
) -> None:
    """Official .pth files to the ONNX graphs that a run would make of them."""
    from pipeline.weights import export as export_weights

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"exporting {folder} to {to}; this takes a minute", markup=False)
    record = export_weights(folder, to, side=side, precision=precision)
    for name in record["graphs"]:
        console.print(f"{to / name}: {_size((to / name).stat().st_size)}", markup=False)
    made = f"{record['side']} px, {record['precision']}, by torch {record['torch']}"
    console.print(f"exported: {made}. Digests are in {to / 'SHA256SUMS'}, what it is made of in {to / 'export.json'}", markup=False)
    console.print(_use(to), markup=False)


def _open(there: Folder) -> tuple[list[str], list[str]]:
    """What the files that a run would use turned out to be, and what is wrong with the folder, a sentence each."""
    from pipeline.weights import ready_without_export

    opened, broken = [], there.broken_promises()
    problems = list(broken.values())
    for weight in (w for w in CATALOGUE if w.layout == "optional" or w.layout == there.layout == "onnx"):
        path = there.find(weight)
        if path is None or path in broken:
            continue
        try:
            opened.append(f"{weight.file}: {open_graph(path, weight.role, thorough=True)}")
        except ValueError as e:
            if weight.role in NETWORKS or weight.layout == "optional":  # a run uses landmark.onnx where it is
                problems.append(str(e))
            else:
                opened.append(f"{e} (a run does without)")
    try:
        if ready_without_export(there) is None:
            opened.append(_load_official(there.base("official")))
    except ValueError as e:
        problems.append(str(e))
    return opened, list(dict.fromkeys(problems))


def _load_official(base: Path) -> str:
    from model.liveportrait_weights import load_liveportrait

    networks = load_liveportrait(base)
    numbers = sum(p.numel() for p in networks.parameters())
    return f"the .pth files load: {numbers / 1e6:,.1f} million parameters, {networks.config.motion.keypoints} keypoints"


def _is_news(row: Row) -> bool:
    """What the table and the problems do not say."""
    return bool(row.next) and row.digest != "wrong" and row.state not in ("missing", "optional")


def _with_sizes(row: Row) -> str:
    if row.digest != "unknown" or row.published_bytes in (None, row.size_bytes):
        return row.file
    return f"{row.file} ({row.size_bytes:,} bytes, published: {row.published_bytes:,})"


def _verdict(folder: Path, problems: list[str]) -> str:
    if problems:
        return f"{folder}: a run cannot use it ({len(problems)} {'problem' if len(problems) == 1 else 'problems'})"
    return f"{folder}: ready. {_use(folder)}"


def _use(folder: Path) -> str:
    return f"In a run's config: reenactor: {{engine: liveportrait, models: {folder.resolve()}}}"


def _what(weight: Weight) -> str:
    return weight.what + (" (a run does without)" if weight.layout == "onnx" and weight.role not in NETWORKS else "")


def _table(console: Console, header: list[str], rows: list[tuple[str, list[str], str]], last: str) -> Table:
    """A row is a file, its cells, and a sentence. A file's name is never cut: people copy it."""
    wide = console.width >= _WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(header[0], overflow="fold")
    for name in header[1:]:
        table.add_column(name, no_wrap=not wide)
    if wide and any(sentence for _, _, sentence in rows):
        table.add_column(last)
    for file, cells, sentence in rows:
        below = "" if wide or not sentence else f"\n  {sentence}"
        table.add_row(file + below, *cells, *([sentence] if len(table.columns) > len(header) else []))
    return table


def _say_once(console: Console, sentences: Iterable[tuple[str, str]]) -> None:
    """(file, what to say of it): one paragraph for all files of which the same is to be said."""
    files: dict[str, list[str]] = {}
    for file, sentence in sentences:
        files.setdefault(sentence, []).append(file)
    for sentence, names in files.items():
        console.print(Padding(Text(f"{', '.join(names)}: {sentence}"), (0, 0, 0, 2), expand=False))


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e5 else f"{size_bytes:,} B"
