"""Outputs: what a record will name is on the disk before the record is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas.ids import content_digest
from schemas.store import DiskStore
from stages.outputs import Outputs


def test_files_and_all_folders_above_them_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(Path(f"/proc/self/fd/{handle}").readlink()))
    out = Outputs(DiskStore(tmp_path), "artifacts/faces/ab")
    assert out.write("x.npz", b"data") == content_digest(b"data")
    out.flush()
    assert flushed == [tmp_path / p for p in ("artifacts/faces/ab/x.npz", "artifacts/faces/ab", "artifacts/faces", "artifacts", ".")]


def test_a_stage_without_files_has_nothing_to_flush(tmp_path: Path) -> None:
    Outputs(DiskStore(tmp_path), "artifacts/faces/ab").flush()
    assert list(tmp_path.iterdir()) == []
