"""Verify, bit by bit: a flipped bit, a cut and an addition in any file of a run are found, and the file is named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from smallworld import Finished, World

from pipeline.verify import diff, verify
from schemas.ids import file_digest
from schemas.sample import read_index

KINDS = {
    "tar": "shards/*/*.tar",
    "index": "shards/*/index.parquet",
    "table": "tables/*.parquet",
    "ledger": "ledger/*/*.jsonl",
    "artifact": "artifacts/*/*/*/*/*",
}
FLIPS = 40  # of each kind
_VERSION = b"parquet-cpp-arrow version "  # the version that follows is another one's when a bit of it flips, and nothing says which


def spots(data: bytes, many: int, seed: int) -> list[int]:
    version = data.rfind(_VERSION) + len(_VERSION)
    said = range(version, version + 12) if _VERSION in data else range(0)
    return random.Random(seed).sample([at for at in range(len(data)) if at not in said], min(many, len(data)))


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def assert_named(root: Path, path: Path, what: str) -> None:
    problems = verify(root)
    assert any(str(path) in p for p in problems), f"{path}: {what}: {problems or 'not found'}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_and_its_file_is_named(copied: Path, kind: str) -> None:
    assert verify(copied) == []
    files = sorted(p for p in copied.glob(KINDS[kind]) if p.stat().st_size)
    for k in range(FLIPS):
        path = files[k % len(files)]
        data = path.read_bytes()
        (at,) = spots(data, 1, k)
        with changed(path, flipped(data, at, k % 8)):
            assert_named(copied, path, f"bit {k % 8} of byte {at}")
    assert verify(copied) == []


def test_no_bit_between_the_members_of_a_tar_flips_unseen(copied: Path) -> None:
    """tar(1) and tarfile do not look at padding, at what is behind the end, nor at all of a header."""
    folder = copied / "shards/meshwarp"
    rows = read_index(folder).to_pylist()
    path = folder / rows[0]["tar"]
    data, members = path.read_bytes(), [m for r in rows if r["tar"] == path.name for m in r["members"]]
    inside = {at for m in members for at in range(m["offset"], m["offset"] + m["size"])}
    header = range(512)
    around = [at for at in range(512, len(data)) if at not in inside]
    for at in (*header[::7], *random.Random(0).sample(around, 60), members[-1]["offset"] + members[-1]["size"], len(data) - 1):
        with changed(path, flipped(data, at, at % 8)):
            assert_named(copied, path, f"byte {at}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_is_named(copied: Path, kind: str) -> None:
    for k, path in enumerate(sorted(p for p in copied.glob(KINDS[kind]) if p.stat().st_size)[:6]):
        data = path.read_bytes()
        for size in (0, random.Random(k).randrange(1, len(data) - 1), len(data) - 1):
            with changed(path, data[:size]):
                assert_named(copied, path, f"cut to {size} of {len(data)}")


def test_a_tar_that_goes_on_behind_its_end_is_named(copied: Path) -> None:
    path = min((copied / "shards/meshwarp").glob("*.tar"))
    for more in (b"\0", b"x", bytes(10240)):
        with changed(path, path.read_bytes() + more):
            assert_named(copied, path, "goes on")


def test_a_segment_cut_between_two_records_is_missed_by_its_units(copied: Path) -> None:
    path, *others = sorted((copied / "ledger/ingest").glob("*.jsonl"))
    lines = [p.read_bytes() for p in (path, *others)]  # a segment may hold any number of records
    for other in others:
        other.unlink()
    path.write_bytes(b"".join(lines))
    assert verify(copied) == [] and len(lines) > 1
    with changed(path, b"".join(lines[:-1])):
        assert any("ledger/ingest: no record of" in p for p in verify(copied))


def test_what_the_ledger_tells_is_written_anew_by_the_next_run(finished: Finished, world: World) -> None:
    root = world.base / "mended"
    shutil.copytree(finished.root, root)
    for name, at in (("outcomes", 0.3), ("samples", 0.97), ("clips", 0.5)):
        path = root / "tables" / f"{name}.parquet"
        data = path.read_bytes()
        path.write_bytes(flipped(data, int(at * len(data)), 0))
        assert_named(root, path, "damaged")
    world.run("mended")
    assert verify(root) == [] and diff(finished.root, root) == []
    assert file_digest(root / "tables/samples.parquet") == file_digest(finished.root / "tables/samples.parquet")


@pytest.mark.parametrize(
    "name", ["tables/sources.parquet", "tables/known.parquet", "tables/pairs.parquet", "shards/meshwarp/index.parquet"]
)
def test_what_nothing_else_tells_stops_the_run_with_a_sentence(finished: Finished, world: World, name: str) -> None:
    root = world.base / f"damaged {Path(name).stem}"
    shutil.copytree(finished.root, root)
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{name}: a damaged table; put back a copy of it, or take it away and run again"):
        world.run(root.name)
