"""Pack: deterministic, immutable, resumable; and a run's folder that contradicts itself is found out."""

from __future__ import annotations

import dataclasses
import random
import subprocess
from pathlib import Path

import pytest
from sampleinfo import ANY_INFO

from pipeline.card import dataset_card
from pipeline.pack import SampleFiles, pack
from pipeline.storage import write_table
from schemas.ids import content_digest, digest, file_digest
from schemas.sample import INDEX_NAME, MEMBERS, SCORES, SampleInfo, read_index, read_members
from schemas.store import DiskStore

KB = 300  # of a sample's target video


def sample(root: Path, name: str, split: str = "train", version: int = 0, sound: bool = True, kb: int = KB) -> SampleFiles:
    key = digest(name)
    files = {}
    for member in MEMBERS:
        if member == "json" or (member == "audio.flac" and not sound):
            continue
        path = root / f"{key}.{version}.{member}"
        path.write_bytes(f"{name} {member} {version}".encode() * (kb * 70 if member == "target.mp4" else 1))
        files[member] = (path.name, file_digest(path))
    info = dataclasses.replace(ANY_INFO, key=key, clip=f"clip-{name}", split=split, has_audio=sound)
    return SampleFiles(info, DiskStore(root), files, {"pose_error_deg": 1.0, "unknown": 2.0})


@pytest.fixture
def samples(tmp_path: Path) -> list[SampleFiles]:
    files = tmp_path / "files"
    files.mkdir()
    return [sample(files, f"s{k}", "val" if k % 5 == 0 else "train", sound=k % 2 == 0) for k in range(12)]


def run_pack(folder: Path, samples: list[SampleFiles], max_mb: int = 1) -> dict[str, str]:
    """File name -> digest, after packing."""
    pack(folder, samples, max_mb=max_mb, seed=0, progress=lambda _: None)
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: file_digest(p) for p in folder.iterdir()}


def test_the_order_of_arrival_leaves_no_trace(tmp_path: Path, samples: list[SampleFiles]) -> None:
    first = run_pack(tmp_path / "a" / "set", samples)
    random.Random(1).shuffle(samples)
    assert run_pack(tmp_path / "b" / "set", samples) == first
    assert len(first) > 5


def test_packing_again_changes_nothing(tmp_path: Path, samples: list[SampleFiles]) -> None:
    first = run_pack(tmp_path / "set", samples)
    inodes = {p.name: p.stat().st_ino for p in (tmp_path / "set").iterdir()}
    assert run_pack(tmp_path / "set", samples) == first
    assert {p.name: p.stat().st_ino for p in (tmp_path / "set").iterdir()} == inodes


def test_the_index_says_where_everything_is(tmp_path: Path, samples: list[SampleFiles]) -> None:
    run_pack(tmp_path / "set", samples)
    rows = {r["sample"]: r for r in read_index(tmp_path / "set").to_pylist()}
    assert rows.keys() == {s.info.key for s in samples}
    for s in samples:
        row = rows[s.info.key]
        members = read_members(tmp_path / "set", row, MEMBERS)
        assert {n: content_digest(d) for n, d in members.items()} == s.digests == {m["name"]: m["digest"] for m in row["members"]}
        assert row["tar"].startswith(f"{s.info.split}-") and row["split"] == s.info.split
        assert SampleInfo.decode(members["json"]) == s.info
        assert (row["pose_error_deg"], row["size_ratio"]) == (1.0, None)


def test_tars_are_as_large_as_allowed_and_no_larger(tmp_path: Path, samples: list[SampleFiles]) -> None:
    run_pack(tmp_path / "set", samples, max_mb=1)
    tars = sorted((tmp_path / "set").glob("train-*.tar"))
    assert len(tars) > 2
    assert all(p.stat().st_size <= (1 << 20) + 20 * 512 for p in tars)
    assert sum(p.stat().st_size for p in tars) / len(tars) > 0.5 * (1 << 20)


def test_a_sample_larger_than_a_tar_has_one_of_its_own(tmp_path: Path) -> None:
    many = [sample(tmp_path, "huge", kb=2000), sample(tmp_path, "small")]
    run_pack(tmp_path / "set", many)
    assert len(list((tmp_path / "set").glob("*.tar"))) == 2


def test_tars_can_be_listed_by_tar(tmp_path: Path, samples: list[SampleFiles]) -> None:
    run_pack(tmp_path / "set", samples, max_mb=100)
    listed = subprocess.run(
        ["tar", "-tf", "train-000000.tar"], cwd=tmp_path / "set", capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed == [
        f"{r['sample']}.{m['name']}" for r in read_index(tmp_path / "set").to_pylist() if r["split"] == "train" for m in r["members"]
    ]


def test_a_withdrawn_sample_takes_only_its_tar_with_it(tmp_path: Path, samples: list[SampleFiles]) -> None:
    folder = tmp_path / "set"
    before = run_pack(folder, samples)
    gone = next(r for r in read_index(folder).to_pylist() if r["split"] == "train")
    after = run_pack(folder, [s for s in samples if s.info.key != gone["sample"]])
    kept = {n for n in before if n.endswith(".tar") and n != gone["tar"]}
    assert gone["tar"] not in after
    assert {n: after[n] for n in kept} == {n: before[n] for n in kept}
    new = {n for n in after if n.endswith(".tar")} - kept
    assert {int(n[-10:-4]) for n in new} == {len(kept) + 1}
    assert not any(gone["sample"].encode() in (folder / n).read_bytes() for n in after)


def test_numbers_are_never_reused(tmp_path: Path, samples: list[SampleFiles]) -> None:
    """Not even that of the last tar, when nothing of it is left."""
    folder = tmp_path / "set"
    run_pack(folder, samples)
    last = max(r["tar"][-10:-4] for r in read_index(folder).to_pylist())
    in_last = {r["sample"] for r in read_index(folder).to_pylist() if r["tar"][-10:-4] == last}
    run_pack(folder, [s for s in samples if s.info.key not in in_last])
    assert not list(folder.glob(f"*-{last}.tar"))
    run_pack(folder, samples)
    assert all(r["tar"][-10:-4] > last for r in read_index(folder).to_pylist() if r["sample"] in in_last)


def test_a_changed_sample_moves_to_a_new_tar(tmp_path: Path, samples: list[SampleFiles]) -> None:
    folder = tmp_path / "set"
    before = run_pack(folder, samples)
    changed = [sample(tmp_path / "files", "s1", version=1, sound=False), *(s for s in samples if s.info.key != digest("s1"))]
    after = run_pack(folder, changed)
    old, new = (set(n for n in d if n.endswith(".tar")) for d in (before, after))
    assert len(old - new) == 1 and len(new - old) == 1


def test_new_samples_leave_old_tars_alone(tmp_path: Path, samples: list[SampleFiles]) -> None:
    before = run_pack(tmp_path / "set", samples[:8])
    after = run_pack(tmp_path / "set", samples)
    tars = {n for n in before if n.endswith(".tar")}
    assert {n: after[n] for n in tars} == {n: before[n] for n in tars}


def test_all_may_be_withdrawn(tmp_path: Path, samples: list[SampleFiles]) -> None:
    run_pack(tmp_path / "set", samples)
    assert set(run_pack(tmp_path / "set", [])) == {INDEX_NAME, "README.md"}
    assert read_index(tmp_path / "set").num_rows == 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_kill_while_packing_leaves_no_trace(tmp_path: Path, samples: list[SampleFiles], after: int) -> None:
    undisturbed = run_pack(tmp_path / "a" / "set", samples)
    told: list[str] = []

    def kill(text: str) -> None:
        told.append(text)
        if len(told) == after:
            raise Killed

    with pytest.raises(Killed):
        pack(tmp_path / "b" / "set", samples, max_mb=1, seed=0, progress=kill)
    assert not (tmp_path / "b" / "set" / INDEX_NAME).exists()
    assert run_pack(tmp_path / "b" / "set", samples) == undisturbed


def test_a_kill_before_the_old_tar_goes_is_mended(tmp_path: Path, samples: list[SampleFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    run_pack(folder, samples)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Killed):
        pack(folder, samples[1:], max_mb=1, seed=0, progress=lambda _: None)
    monkeypatch.undo()
    run_pack(folder, samples[1:])
    assert {p.name for p in folder.glob("*.tar")} == {r["tar"] for r in read_index(folder).to_pylist()}


def test_an_artifact_that_changed_is_not_packed(tmp_path: Path, samples: list[SampleFiles]) -> None:
    path = Path(samples[3].store.at(samples[3].files["driving.mp4"][0]))
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(ValueError, match=r"driving\.mp4: gone or changed since.*retry RUN --damaged"):
        run_pack(tmp_path / "set", samples)
    assert not (tmp_path / "set" / INDEX_NAME).exists()


def test_scores_do_not_touch_tars(tmp_path: Path, samples: list[SampleFiles]) -> None:
    before = run_pack(tmp_path / "set", samples)
    after = run_pack(tmp_path / "set", [dataclasses.replace(s, scores={"pose_error_deg": 2.0}) for s in samples])
    assert {n: d for n, d in before.items() if n.endswith(".tar")} == {n: d for n, d in after.items() if n.endswith(".tar")}


def test_an_index_of_an_older_run_gets_the_scores_that_it_did_not_know(tmp_path: Path, samples: list[SampleFiles]) -> None:
    folder = tmp_path / "set"
    before = run_pack(folder, samples)
    first = ["pose_error_deg", "centre_offset", "size_ratio", "mouth_correlation", "eye_correlation"]
    table = read_index(folder)
    write_table(DiskStore(folder), INDEX_NAME, table.select([n for n in table.column_names if n not in SCORES or n in first]))
    assert [n for n in SCORES if n in read_index(folder).column_names] == first
    known = {"pose_error_deg": 2.0, "jitter_ratio": 1.5}
    after = run_pack(folder, [dataclasses.replace(s, scores=known) for s in samples])
    assert {n: d for n, d in before.items() if n.endswith(".tar")} == {n: d for n, d in after.items() if n.endswith(".tar")}
    for row in read_index(folder).to_pylist():
        assert {n: row[n] for n in SCORES} == {**dict.fromkeys(SCORES), **known}


def test_the_card_counts_what_is_there(samples: list[SampleFiles]) -> None:
    rows = [{"split": s.info.split, "frames": 10, "has_audio": s.info.has_audio} for s in samples]
    card = dataset_card("set", rows)
    assert "| train | 9 | 90 |" in card and "| val | 3 | 30 |" in card
    assert "audio.flac" in card and "audio.flac" not in dataset_card("set", [{**r, "has_audio": False} for r in rows])
