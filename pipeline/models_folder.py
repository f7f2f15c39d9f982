"""A models folder: what of the catalogue is in it, and whether it is what it should be. Nothing is ever written to it.

Two ways to fill it, see pipeline/catalogue.py: the official .pth files, or ONNX graphs. A SHA256SUMS in it, or in one of its folders, is
a promise: where it names a file, that file must match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.catalogue import CATALOGUE, FOLDERS, NETWORKS, OTHERS, SUMS, Layout, Weight
from schemas.ids import sha256_of

LIST = "`crosspair models list` says which files are expected where"
POINTER = "a Git LFS pointer, not the file itself: run `git lfs pull` where it comes from, or download the file"
_SUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")  # as sha256sum writes it

State = Literal["found", "missing", "optional", "refused", "unused"]
DigestState = Literal["known", "listed", "unknown", "wrong", ""]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file, expected or met.

    Attributes:
        file: as the catalogue names it, or under the models folder.
        size_bytes, published_bytes: of the file, and of the one that was published under its name.
        digest: known: as published; listed: as SHA256SUMS says; wrong: not as SHA256SUMS says; unknown: neither published nor listed.
        next: what to do, or why nothing; empty where there is nothing to say.
    """

    role: str
    file: str
    layout: Layout
    path: Path | None
    state: State
    size_bytes: int | None
    published_bytes: int | None
    sha256: str
    digest: DigestState
    licence: str
    next: str


@dataclass
class Folder:
    """The user's folder, each file read once. Nothing is ever written to it."""

    root: Path
    digests: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder. Make it and put the LivePortrait weights there; {LIST}")

    def sha256(self, path: Path) -> str:
        if path not in self.digests:
            self.digests[path] = sha256_of(path)
        return self.digests[path]

    def find(self, weight: Weight) -> Path | None:
        """The file, in the first of the folders where its layout may lie."""
        if weight.layout in ("official", "onnx"):
            path = self.base(weight.layout) / weight.file
            return path if path.is_file() else None
        paths = [self.root / folder / weight.file for folder in FOLDERS[weight.layout]]
        return next((p for p in paths if p.is_file()), None)

    def base(self, layout: Layout) -> Path:
        """The folder that has any of the layout's files, or else the first where they may be."""
        folders = [self.root / folder for folder in FOLDERS[layout]]
        return next((f for f in folders if any((f / w.file).is_file() for w in CATALOGUE if w.layout == layout)), folders[0])

    @property
    def layout(self) -> Layout | None:
        """ONNX graphs win: who put them there wants them."""
        layouts: tuple[Layout, ...] = ("onnx", "official")
        return next((name for name in layouts if any(self.find(w) for w in CATALOGUE if w.layout == name)), None)

    def promises(self) -> Iterable[Promise]:
        folders = {self.root / f for names in FOLDERS.values() for f in names}
        folders |= {f / part for f in folders for part in ("base_models", "retargeting_models")}
        for folder in sorted(folders):
            yield from read_sums(folder)

    def broken_promises(self) -> dict[Path, str]:
        """Files that are there and differ from what a SHA256SUMS says, with a sentence each."""
        broken = {}
        for promise in self.promises():
            if promise.path.is_file() and self.sha256(promise.path) != promise.sha256:
                broken[promise.path] = (
                    f"{promise.path}: expected sha256 {promise.sha256} ({promise.where}), found {self.sha256(promise.path)}: "
                    f"damaged, or replaced. Download or export it again; if the new file is meant, take its line out of {SUMS}"
                )
        return broken

    def keep_promises(self) -> None:
        """Raises ValueError when a file is not what a SHA256SUMS says."""
        for sentence in self.broken_promises().values():
            raise ValueError(sentence)

    def others(self) -> dict[Path, str]:
        """Files and folders that people take for these weights, and why they are not."""
        return {path: why for pattern, why in OTHERS.items() for path in sorted(self.root.glob(pattern))}


@dataclass(frozen=True)
class Promise:
    path: Path
    sha256: str
    where: str


def read_sums(folder: Path) -> list[Promise]:
    """The lines of a folder's SHA256SUMS; none where there is no such file.

    Raises:
        ValueError: a line that is not as `sha256sum` writes it. To pass over it would be to promise nothing.
    """
    file = folder / SUMS
    if not file.is_file():
        return []
    promises = []
    for number, line in enumerate(file.read_text("utf-8-sig", "surrogateescape").splitlines(), 1):
        match = _SUM.fullmatch(line.strip())
        if match:
            promises.append(Promise(folder / match[2], match[1].lower(), f"{file}, line {number}"))
        elif line.strip():
            raise ValueError(f"{file}, line {number}: expected a sha256 and a file name, as `sha256sum` writes them, found {line[:80]!r}")
    return promises


def survey(folder: Path) -> list[Row]:
    """Every file of the catalogue that is expected or there, with its digest, and what else lies there that people take for weights.

    Raises:
        ValueError: no such folder, or a SHA256SUMS that cannot be read.
    """
    there = Folder(folder)
    broken, listed = there.broken_promises(), {p.path for p in there.promises()}
    rows = [_row(there, weight, path, broken, listed) for weight in CATALOGUE if (path := there.find(weight)) or _expected(there, weight)]
    seen = {row.path for row in rows}
    for path in [*there.others(), *broken]:
        if path not in seen:
            seen.add(path)
            rows.append(_other_row(path, broken.get(path, ""), there.others().get(path, "")))
    return rows


def _expected(there: Folder, weight: Weight) -> bool:
    return weight.layout == there.layout or weight.layout == "optional" or (there.layout is None and weight.layout in ("official", "onnx"))


def _needed(weight: Weight) -> bool:
    return weight.layout == "official" or (weight.layout == "onnx" and weight.role in NETWORKS)


def _row(there: Folder, weight: Weight, path: Path | None, broken: dict[Path, str], listed: set[Path]) -> Row:
    state: State = "found"
    if weight.layout in ("refused", "unused"):
        state = "refused" if weight.layout == "refused" else "unused"
    elif path is None:
        state = "missing" if _needed(weight) else "optional"
    elif weight.layout == "official" and there.layout == "onnx":
        state = "unused"
    checked: DigestState = ""
    if path is not None:
        known = there.sha256(path) in weight.digests
        checked = "wrong" if path in broken else "known" if known else "listed" if path in listed else "unknown"
    return Row(
        role=weight.role,
        file=weight.file if path is None or weight.layout in ("official", "onnx") else str(path.relative_to(there.root)),
        layout=weight.layout,
        path=path,
        state=state,
        size_bytes=path.stat().st_size if path else None,
        published_bytes=weight.size_bytes,
        sha256=there.sha256(path) if path else "",
        digest=checked,
        licence=weight.licence if checked in ("known", "") else f"{weight.licence} as published",
        next=broken[path] if path in broken else _next(weight, path, state, checked),
    )


def _next(weight: Weight, path: Path | None, state: State, checked: DigestState) -> str:
    if weight.advice:
        return weight.advice
    if path is None:
        return f"put it there, from {weight.origin}" if state == "missing" else "needed only by what asks for it"
    if state == "unused":
        return "the ONNX graphs are used; take them away to use this file"
    if is_pointer(path):
        return POINTER
    if checked == "unknown":
        return "a digest that we do not know: another export, your own weights, or a damaged download. If you downloaded it, do so again"
    return ""


def _other_row(path: Path, broken: str, why: str) -> Row:
    is_file = path.is_file()
    return Row(
        role="", file=path.name, layout="unused", path=path, state="unused", size_bytes=path.stat().st_size if is_file else None,
        published_bytes=None, sha256=sha256_of(path) if broken else "", digest="wrong" if broken else "", licence="", next=broken or why,
    )  # fmt: skip


def is_pointer(path: Path) -> bool:
    if path.stat().st_size > 1024:
        return False
    return path.read_bytes().startswith(b"version https://git-lfs")
