"""The ledger and the disk: whole or not at all, and one run at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.ledger import Ledger, LedgerWriter, Record
from pipeline.storage import exclusive, write_table
from schemas.outcomes import Outcome
from schemas.store import DiskStore


def record(unit: str, outcome: Outcome = Outcome.DONE, print_: str = "f", **more: object) -> Record:
    about = {"stage": "faces", "kind": "shot", "parent": "p", "source_uri": "/u\u2028\n", "fingerprint": print_}
    return Record(**{**about, "unit": unit, "outcome": outcome, **more})  # type: ignore[arg-type]


def write(root: Path, *records: Record) -> None:
    writer = LedgerWriter(root, "faces")
    for r in records:
        writer.add(r)
    writer.flush()


def segments(root: Path) -> list[Path]:
    return sorted(p for p in (root / "ledger/faces").iterdir() if p.is_file())


def open_attempts(root: Path) -> list[str]:
    return [p.name for p in (root / "ledger/faces/open").glob("*")]


def test_records_come_back_as_they_went(tmp_path: Path) -> None:
    r = record("u", Outcome.REJECTED, reason="no_face", data={"looks": 3, "x": 0.1}, children=[{"id": "c"}], digests={"a": "b"})
    write(tmp_path, r)
    assert Ledger(tmp_path).read("faces", "f") == {"u": r}


def test_a_segment_is_written_once_and_whole(tmp_path: Path) -> None:
    write(tmp_path, record("a"), record("b"))
    (segment,) = segments(tmp_path)
    before = segment.read_bytes()
    write(tmp_path, record("c"))
    assert segment.read_bytes() == before and len(segments(tmp_path)) == 2
    assert before.endswith(b"\n") and before.count(b"\n") == 2


def test_nothing_to_flush_writes_nothing(tmp_path: Path) -> None:
    LedgerWriter(tmp_path, "faces").flush()
    assert not (tmp_path / "ledger").exists()


def test_the_first_done_wins(tmp_path: Path) -> None:
    write(tmp_path, record("u", Outcome.FAILED, reason="error"))
    write(tmp_path, record("u", folder="first"))
    write(tmp_path, record("u", folder="second"))
    write(tmp_path, record("u", Outcome.QUARANTINED, reason="worker_died"))
    assert Ledger(tmp_path).read("faces", "f")["u"].folder == "first"


def test_without_a_done_the_last_counts(tmp_path: Path) -> None:
    write(tmp_path, record("u", Outcome.FAILED, reason="error"))
    write(tmp_path, record("u", Outcome.QUARANTINED, reason="worker_died"))
    assert Ledger(tmp_path).read("faces", "f")["u"].outcome == Outcome.QUARANTINED


def test_another_fingerprint_is_history(tmp_path: Path) -> None:
    write(tmp_path, record("u", print_="old"))
    assert Ledger(tmp_path).read("faces", "new") == {}


def test_a_segment_half_written_when_killed_is_no_segment(tmp_path: Path) -> None:
    write(tmp_path, record("u"))
    (segment,) = segments(tmp_path)
    segment.with_name(f".{segment.name}.tmp-1").write_text('{"unit": ')
    assert set(Ledger(tmp_path).read("faces", "f")) == {"u"}


def test_forgotten_units_are_due_again_and_no_others(tmp_path: Path) -> None:
    write(tmp_path, record("a", Outcome.FAILED, reason="error"), record("b"))
    write(tmp_path, record("a", Outcome.FAILED, reason="error"))
    write(tmp_path, record("a", print_="older"))
    Ledger(tmp_path).forget("faces", "f", {"a"})
    assert set(Ledger(tmp_path).read("faces", "f")) == {"b"} and len(segments(tmp_path)) == 2
    assert set(Ledger(tmp_path).read("faces", "older")) == {"a"}


def test_many_segments_become_one_that_says_the_same(tmp_path: Path) -> None:
    for n in range(40):
        write(tmp_path, record(f"u{n % 7}", Outcome.DONE if n > 20 else Outcome.FAILED, reason="" if n > 20 else "error", folder=str(n)))
    before = Ledger(tmp_path).read("faces", "f")
    Ledger(tmp_path).compact()
    assert Ledger(tmp_path).read("faces", "f") == before and len(segments(tmp_path)) == 1


def test_who_reads_while_segments_are_made_one_sees_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        write(tmp_path, record(f"u{n}"))
    ledger, read_many = Ledger(tmp_path), DiskStore.read_many

    def vanishing(store: DiskStore, names: Sequence[str]) -> list[bytes]:
        monkeypatch.setattr(DiskStore, "read_many", read_many)
        Ledger(tmp_path).compact()  # between the listing and the reading
        return read_many(store, names)

    monkeypatch.setattr(DiskStore, "read_many", vanishing)
    assert set(ledger.read("faces", "f")) == {f"u{n}" for n in range(40)}
    assert len(segments(tmp_path)) == 1


def test_attempts_under_a_dead_worker_are_counted_by_session(tmp_path: Path) -> None:
    assert LedgerWriter(tmp_path, "faces").begin("u", "s1") == 1
    assert LedgerWriter(tmp_path, "faces").begin("u", "s1") == 2
    assert LedgerWriter(tmp_path, "faces").begin("u", "s2") == 1
    assert LedgerWriter(tmp_path, "faces").begin("v", "s1") == 1


def test_a_record_settles_all_attempts_at_its_unit(tmp_path: Path) -> None:
    LedgerWriter(tmp_path, "faces").begin("u", "s1")
    writer = LedgerWriter(tmp_path, "faces")
    writer.begin("u", "s1")
    writer.begin("v", "s1")
    writer.add(record("u"))
    writer.flush()
    assert [name[0] for name in open_attempts(tmp_path)] == ["v"]


def test_a_unit_that_ended_before_its_worker_died_is_not_blamed(tmp_path: Path) -> None:
    """Its record was lost with the worker, so it is done again; it did not kill."""
    writer = LedgerWriter(tmp_path, "faces")
    for unit in ("innocent", "killer"):
        writer.begin(unit, "s")
        if unit == "innocent":
            writer.add(record(unit))
    del writer  # dies without a flush
    again = LedgerWriter(tmp_path, "faces")
    assert again.begin("innocent", "s") == 1
    assert again.begin("killer", "s") == 2


def test_what_a_killed_session_left_open_can_be_closed(tmp_path: Path) -> None:
    LedgerWriter(tmp_path, "faces").begin("u", "s1")
    Ledger(tmp_path).close_attempts()
    assert open_attempts(tmp_path) == []


# --- storage


def test_a_table_with_the_same_rows_is_left_alone(tmp_path: Path) -> None:
    store, path = DiskStore(tmp_path), tmp_path / "t.parquet"
    write_table(store, path.name, pa.table({"a": [1, 2]}))
    before = path.stat().st_ino
    write_table(store, path.name, pa.table({"a": [1, 2]}))
    assert path.stat().st_ino == before
    write_table(store, path.name, pa.table({"a": [1, 3]}))
    assert path.stat().st_ino != before


def test_one_run_at_a_time_also_between_processes(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from pipeline.storage import exclusive\nwith exclusive(Path({str(tmp_path)!r})): pass"
    command = [sys.executable, "-c", code]
    with exclusive(tmp_path):
        with pytest.raises(ValueError, match="another crosspair process"), exclusive(tmp_path):
            pass
        other = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert other.returncode == 1 and "another crosspair process" in other.stderr
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == 0


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = f"from pipeline.storage import exclusive\nexclusive(Path({str(tmp_path)!r})).__enter__(); os._exit(9)"
    code = f"import os; from pathlib import Path; {code}"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 9
    with exclusive(tmp_path):
        pass
