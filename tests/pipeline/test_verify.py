"""Verify and diff: each way in which a run can contradict itself is named."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from smallworld import Finished

from pipeline.verify import diff, verify
from schemas.sample import INDEX_NAME, read_index


def shards(root: Path) -> Path:
    return root / "shards" / "meshwarp"


def a_tar(root: Path) -> Path:
    return min(shards(root).glob("*.tar"))


def first_row(root: Path) -> dict:
    row: dict = next(r for r in read_index(shards(root)).to_pylist() if r["tar"] == a_tar(root).name)
    return row


def change_index(root: Path, change: Callable[[list[dict]], object]) -> None:
    table = read_index(shards(root))
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shards(root) / INDEX_NAME)


def change_table(root: Path, name: str, change: Callable[[list[dict]], object]) -> None:
    path = root / "tables" / f"{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist(maps_as_pydicts="strict")
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_a_member(root: Path) -> str:
    member = next(m for m in first_row(root)["members"] if m["name"] == "target.mp4")
    flip(a_tar(root), member["offset"] + member["size"] // 2)
    return f"{first_row(root)['sample']}.target.mp4 does not have its digest"


def truncate_a_tar(root: Path) -> str:
    a_tar(root).write_bytes(a_tar(root).read_bytes()[: first_row(root)["members"][3]["offset"] + 5])
    return a_tar(root).name


def lose_a_tar(root: Path) -> str:
    name = a_tar(root).name
    a_tar(root).unlink()
    return f"{name}: missing, though the index names it"


def lose_a_member(root: Path) -> str:
    """Written anew without it, as a careless tool would."""
    path, out, row = a_tar(root), io.BytesIO(), first_row(root)
    with tarfile.open(path) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            if member.name != f"{row['sample']}.regions.npz":
                new.addfile(member, old.extractfile(member))
    path.write_bytes(out.getvalue())
    return f"{row['sample']}.regions.npz is missing"


def add_a_member(root: Path) -> str:
    with tarfile.open(a_tar(root), "a") as tar:
        info = tarfile.TarInfo("stowaway.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    return "stowaway.json is not in the index"


def add_a_tar(root: Path) -> str:
    shutil.copy(a_tar(root), shards(root) / "train-000099.tar")
    return "train-000099.tar: not in the index"


def drop_an_index_row(root: Path) -> str:
    sample = first_row(root)["sample"]
    change_index(root, lambda rows: rows.remove(next(r for r in rows if r["sample"] == sample)))
    return f"sample {sample} is in the tables only"


def double_an_index_row(root: Path) -> str:
    change_index(root, lambda rows: rows.append(rows[0]))
    return "a sample stands twice"


def stale_checksum_in_index(root: Path) -> str:
    change_index(root, lambda rows: rows[0]["members"][1].update(checksum=0))
    return "not the checksum that the index gives it"


def stale_digest_in_index(root: Path) -> str:
    change_index(root, lambda rows: rows[0].update(digest="0" * 20))
    return "the index contradicts itself"


def shifted_offset_in_index(root: Path) -> str:
    def shift(rows: list[dict]) -> None:
        rows[0]["members"][0]["offset"] += 512

    change_index(root, shift)
    return "is not where the index says"


def index_row_of_a_missing_tar(root: Path) -> str:
    change_index(root, lambda rows: rows[0].update(tar="train-000077.tar"))
    return "train-000077.tar: missing"


def lose_the_index(root: Path) -> str:
    (shards(root) / INDEX_NAME).unlink()
    return "no index"


def break_the_index(root: Path) -> str:
    (shards(root) / INDEX_NAME).write_bytes(b"PAR1 no more PAR1")
    return str(shards(root))


def lose_the_shards(root: Path) -> str:
    shutil.rmtree(root / "shards")
    return "no index, though the tables name the set"


def change_an_artifact(root: Path) -> str:
    path = next((root / "artifacts/reenact").glob("*/*/*/driving.mp4"))
    flip(path, 1000)
    return f"{path}: changed since reenact made it"


def lose_an_artifact(root: Path) -> str:
    path = next((root / "artifacts/faces").glob("*/*/*/*.track.npz"))
    path.unlink()
    return f"{path}: missing, though faces made it"


def lose_a_ledger_segment(root: Path) -> str:
    for path in (root / "ledger/portraits").glob("*.jsonl"):
        path.unlink()
    return "ledger/portraits: no record of"


def break_a_ledger_segment(root: Path) -> str:
    path = min((root / "ledger/faces").glob("*.jsonl"))
    path.write_text(path.read_text()[:-30])
    return path.name


def lose_an_outcome(root: Path) -> str:
    change_table(root, "outcomes", lambda rows: rows.remove(next(r for r in rows if r["stage"] == "ingest")))
    return "has no outcome"


def contradict_the_ledger(root: Path) -> str:
    change_table(root, "outcomes", lambda rows: next(r for r in rows if r["reason"] == "no_face").update(outcome="done", reason=""))
    return "in the ledger rejected"


def lose_the_plan(root: Path) -> str:
    (root / "tables/pairs.parquet").unlink()
    return "of no planned pair"


def move_a_sample_in_the_tables(root: Path) -> str:
    change_table(root, "samples", lambda rows: rows[0].update(tar="train-000042.tar"))
    return "by the tables in train-000042.tar"


def leave_a_source_unfinished(root: Path) -> str:
    change_table(root, "sources", lambda rows: rows[0].update(outcome=""))
    return "is unfinished"


FAULTS = [
    flip_a_member,
    truncate_a_tar,
    lose_a_tar,
    lose_a_member,
    add_a_member,
    add_a_tar,
    drop_an_index_row,
    double_an_index_row,
    stale_checksum_in_index,
    stale_digest_in_index,
    shifted_offset_in_index,
    index_row_of_a_missing_tar,
    lose_the_index,
    break_the_index,
    lose_the_shards,
    change_an_artifact,
    lose_an_artifact,
    lose_a_ledger_segment,
    break_a_ledger_segment,
    lose_an_outcome,
    contradict_the_ledger,
    lose_the_plan,
    move_a_sample_in_the_tables,
    leave_a_source_unfinished,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_planted_fault_is_named(copied: Path, fault: Callable[[Path], str]) -> None:
    assert verify(copied) == []
    says = fault(copied)
    problems = verify(copied)
    assert any(says in p for p in problems), problems


def test_a_run_that_was_moved_still_verifies(copied: Path) -> None:
    assert verify(copied) == []


def test_the_same_run_differs_in_nothing(copied: Path, finished: Finished) -> None:
    assert diff(copied, finished.root) == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (drop_an_index_row, "only"),
        (flip_a_member, "does not have its digest"),
        (lose_a_tar, "cannot be read"),
    ],
)
def test_what_differs_is_named(copied: Path, finished: Finished, fault: Callable[[Path], str], says: str) -> None:
    fault(copied)
    differences = diff(finished.root, copied)
    assert any(says in d for d in differences), differences


def test_another_set_is_a_difference(copied: Path, finished: Finished) -> None:
    shutil.copytree(shards(copied), copied / "shards" / "other")
    assert diff(finished.root, copied) == ["set other is in one run only"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.yaml is missing"):
        verify(tmp_path)
    with pytest.raises(ValueError, match="holds no shards"):
        diff(tmp_path, tmp_path)
