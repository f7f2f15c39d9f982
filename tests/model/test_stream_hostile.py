"""Damaged and hostile shards: each is a clear error or a counted skip, takes nothing but its own slot, and runs nothing."""

from __future__ import annotations

import io
import logging
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pairset import SIZE_PX, members_of, regions_of, video, write_pair_set

from model.stream import BadSlot, Prefetch, ShardStream, StreamConfig, Window
from schemas.arrays import encode_arrays
from schemas.files import StorageError
from schemas.ids import checksum, content_digest
from schemas.regions import Regions
from schemas.sample import DRIVING, INDEX_NAME, INDEX_SCHEMA, INFO, REGIONS_MEMBER, SOURCE, TARGET, sample_digest, tar_header

CONFIG = StreamConfig(frames=4, history=2)
TAR = "train-000000.tar"
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Members]:
    """Of a sample `bad`, which tests damage, and of a `good` one beside it."""
    scratch = tmp_path_factory.mktemp("members")
    return {key: members_of(key, 12, scratch) for key in ("bad", "good")}


def edit_index(folder: Path, change: Callable[[dict], object]) -> None:
    rows = pq.read_table(folder / INDEX_NAME).to_pylist()
    change(next(r for r in rows if r["sample"] == "bad"))
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / INDEX_NAME)


def edit_tar(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / TAR
    path.write_bytes(change(path.read_bytes()))


def skipped(folder: Path, config: StreamConfig = CONFIG) -> str:
    """Why `bad` is; it keeps its place, and `good` is read."""
    stream = ShardStream(folder, config)
    slots = {stream.key(p): (p, slot) for p, slot in enumerate(stream.batch(0, 2))}
    position, bad = slots["bad"]
    assert isinstance(bad, BadSlot) and (bad.key, bad.position) == ("bad", position) and isinstance(slots["good"][1], Window)
    with pytest.raises(ValueError) as told:
        stream.read(position)
    assert str(told.value) == bad.reason and f"{folder / TAR}: sample bad: " in bad.reason
    return bad.reason


def png(height: int, width: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\x00\x00\x00") + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def npz(**arrays: np.ndarray) -> bytes:
    return encode_arrays(arrays)


OUTLINES, VALID = regions_of(12).outlines, regions_of(12).valid
FAR = np.where(np.arange(12)[:, None, None, None] == 7, np.float32(1e30), OUTLINES)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        (REGIONS_MEMBER, npz(outlines=OUTLINES.astype(np.float64), valid=VALID), "outlines are float64"),
        (REGIONS_MEMBER, npz(outlines=OUTLINES, valid=VALID.astype(np.float32)), "valid is float32"),
        (REGIONS_MEMBER, npz(outlines=OUTLINES.astype("S4"), valid=VALID), "outlines are"),
        (REGIONS_MEMBER, npz(outlines=np.float32(1), valid=VALID), "outlines must be"),
        (REGIONS_MEMBER, npz(outlines=OUTLINES * np.float32(np.nan), valid=VALID), "nowhere near"),
        (REGIONS_MEMBER, npz(outlines=FAR, valid=VALID), "nowhere near"),
        (REGIONS_MEMBER, npz(outlines=OUTLINES[:, :, :0], valid=VALID), "damaged"),
        (REGIONS_MEMBER, b"", "without pickle"),
        (INFO, b"[" * 100_000, "no crosspair sample|damaged"),
        (INFO, b'{"format": 1}', "no crosspair sample"),
        (INFO, b"\xff", "codec can't decode"),
        (TARGET, b"#EXTM3U\nfile:///etc/passwd\n", "not a readable crosspair video"),
        (DRIVING, b"", "not a readable crosspair video"),
    ],
)
def test_a_member_of_another_kind_costs_its_own_slot(
    tmp_path: Path, members: dict[str, Members], name: str, data: bytes, complaint: str
) -> None:
    reason = skipped(write_pair_set(tmp_path / "set", members | {"bad": members["bad"] | {name: data}}, keys=["bad", "good"]))
    assert any(word in reason for word in complaint.split("|")), reason


def test_pictures_of_another_size_are_refused_before_they_are_made(tmp_path: Path, members: dict[str, Members]) -> None:
    """30000 x 30000 pixels would be 2.7 GB."""
    whole = StreamConfig(frames=10, history=2)  # the source is the still
    folder = write_pair_set(tmp_path / "still", members | {"bad": members["bad"] | {SOURCE: png(30000, 30000)}})
    assert f"no PNG of {SIZE_PX} x {SIZE_PX} px" in skipped(folder, whole)
    jpeg = cv2.imencode(".jpg", np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8))[1].tobytes()
    assert "no PNG" in skipped(write_pair_set(tmp_path / "jpeg", members | {"bad": members["bad"] | {SOURCE: jpeg}}), whole)
    small = video(tmp_path / "v.mp4", np.zeros((12, 48, 48, 3), np.uint8), size_px=48)
    folder = write_pair_set(tmp_path / "video", members | {"bad": members["bad"] | {TARGET: small}})
    assert "48 x 48 px, not of 96" in skipped(folder)


def test_a_pickle_is_never_loaded(tmp_path: Path, members: dict[str, Members]) -> None:
    """Neither as a member of its own, nor in a member's place, nor within one."""
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    bare = np.lib.format.magic(1, 0) + b"\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(72) + trap
    with_object = io.BytesIO()
    np.savez(with_object, outlines=np.array(Trap(tmp_path / "sprung"), object), valid=VALID)
    for i, data in enumerate((trap, bare, with_object.getvalue())):
        folder = write_pair_set(tmp_path / str(i), members | {"bad": members["bad"] | {REGIONS_MEMBER: data}})
        assert "without pickle" in skipped(folder)
    folder = write_pair_set(tmp_path / "own", members)

    def add(row: dict) -> None:
        size = (folder / TAR).stat().st_size
        row["members"].append({"name": "evil.pyd", "offset": size + 512, "size": len(trap), "digest": content_digest(trap), "checksum": 0})
        row["digest"] = sample_digest({m["name"]: m["digest"] for m in row["members"]})

    edit_index(folder, add)
    edit_tar(folder, lambda tar: tar + tar_header("bad.evil.pyd", len(trap)) + trap)
    assert all(isinstance(slot, Window) for slot in ShardStream(folder, CONFIG).batch(0, 2))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)  # noqa: S301 the trap works
    assert (tmp_path / "sprung").exists()


def test_a_truncated_tar_costs_what_was_lost(tmp_path: Path, members: dict[str, Members]) -> None:
    for at, complaint in (("header", "the tar has ended"), ("data", "the tar has ended within bad.")):
        folder = write_pair_set(tmp_path / at, {"good": members["good"], "bad": members["bad"]})
        last = pq.read_table(folder / INDEX_NAME).to_pylist()[1]["members"][-1]
        cut = last["offset"] - 100 if at == "header" else last["offset"] + last["size"] // 2
        edit_tar(folder, lambda tar, cut=cut: tar[:cut])
        assert complaint in skipped(folder)


def test_a_damaged_byte_is_found(tmp_path: Path, members: dict[str, Members]) -> None:
    folder = write_pair_set(tmp_path / "set", members)
    edit_tar(folder, lambda tar: tar.replace(members["bad"][REGIONS_MEMBER], members["bad"][REGIONS_MEMBER][:-1] + b"?", 1))
    for check in ("checksums", "digests"):
        assert "regions.npz holds other bytes than the index says" in skipped(folder, replace(CONFIG, check=check))


def test_a_byte_that_was_put_there_is_found_by_digests_alone(tmp_path: Path, members: dict[str, Members]) -> None:
    folder, other = write_pair_set(tmp_path / "set", members), members["bad"][SOURCE][:-1] + b"?"
    edit_tar(folder, lambda tar: tar.replace(members["bad"][SOURCE], other, 1))
    edit_index(folder, lambda row: next(m for m in row["members"] if m["name"] == SOURCE).update(checksum=checksum(other)))
    assert "source.png holds other bytes than the index says" in skipped(folder, replace(CONFIG, check="digests"))
    stream = ShardStream(folder, CONFIG)
    assert all(isinstance(slot, Window) for slot in stream.batch(0, 2))


def test_damage_is_found_in_what_an_older_run_packed(tmp_path: Path, members: dict[str, Members]) -> None:
    """Its index has no checksums: digests are looked at. One that a newer run went on with has both kinds."""
    for name, schema in (("older", older_schema()), ("both", INDEX_SCHEMA)):
        folder = write_pair_set(tmp_path / name, members)
        rows = pq.read_table(folder / INDEX_NAME).to_pylist()
        for m in next(r for r in rows if r["sample"] == "bad")["members"]:
            del m["checksum"]
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / INDEX_NAME)
        assert all(isinstance(slot, Window) for slot in ShardStream(folder, CONFIG).batch(0, 2))
        edit_tar(folder, lambda tar: tar.replace(members["bad"][REGIONS_MEMBER], members["bad"][REGIONS_MEMBER][:-1] + b"?", 1))
        assert "regions.npz holds other bytes" in skipped(folder)


def older_schema() -> pa.Schema:
    known = [f for f in INDEX_SCHEMA.field("members").type.value_type if f.name != "checksum"]
    return pa.schema([pa.field("members", pa.list_(pa.struct(known))) if f.name == "members" else f for f in INDEX_SCHEMA])


def test_members_that_were_swapped_are_found(tmp_path: Path, members: dict[str, Members]) -> None:
    """In the tar, whose headers then say so; and in the index, even by someone who gives the sample a digest that fits."""
    folder = write_pair_set(tmp_path / "tar", members)
    pairs = [(f"bad.{a}", f"bad.{b}") for a, b in ((TARGET, DRIVING), (DRIVING, TARGET))]

    def swap_headers(tar: bytes) -> bytes:
        size = {n: len(members["bad"][n]) for n in (TARGET, DRIVING)}
        at = [tar.index(tar_header(a, size[a[4:]])) for a, _ in pairs]
        for i, (_, b) in zip(at, pairs, strict=True):
            tar = tar[:i] + tar_header(b, size[b[4:]]) + tar[i + 512 :]
        return tar

    edit_tar(folder, swap_headers)
    assert "holds 'bad.target.mp4' of" in skipped(folder)
    folder = write_pair_set(tmp_path / "index", members)

    def swap(row: dict) -> None:
        by_name = {m["name"]: m for m in row["members"]}
        by_name[TARGET]["name"], by_name[DRIVING]["name"] = DRIVING, TARGET

    edit_index(folder, swap)
    assert "holds 'bad.driving.mp4' of" in skipped(folder)
    assert "not those that its digest" in skipped(folder, replace(CONFIG, check="digests"))
    edit_index(folder, lambda row: row.update(digest=sample_digest({m["name"]: m["digest"] for m in row["members"]})))
    assert "holds 'bad.driving.mp4' of" in skipped(folder)


@pytest.mark.parametrize("name", ["../../bad.json", "/etc/bad.json"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, members: dict[str, Members], name: str) -> None:
    folder = write_pair_set(tmp_path / "set", members)
    size = len(members["bad"][INFO])
    edit_tar(folder, lambda tar: tar.replace(tar_header("bad.json", size), tar_header(name, size)))
    assert f"the tar holds {name!r}" in skipped(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    "tar", ["../../x.tar", "../set/train-000000.tar", "/etc/passwd", "..", "", "a\\b.tar", "s3://bucket/x.tar", ".hidden", "x\0", "n" * 256]
)
def test_an_index_whose_tars_are_elsewhere_is_refused(tmp_path: Path, members: dict[str, Members], tar: str) -> None:
    folder = write_pair_set(tmp_path / "set", members)
    edit_index(folder, lambda row: row.update(tar=tar))
    with pytest.raises(ValueError, match=r"index\.parquet: .* is not the name of a tar beside it"):
        ShardStream(folder, CONFIG)


def one(field: str, value: object) -> Callable[[dict], object]:
    return lambda row: row["members"][2].update({field: value})


HUGE = 2**63 - 1
WRONG_CHECKSUM = one("checksum", 0)


@pytest.mark.parametrize(
    "lie",
    [
        *(one("offset", value) for value in (-1, -HUGE, 0, 511, HUGE, HUGE - 10, 1 << 40, 5000)),
        *(one("size", value) for value in (-1, 0, HUGE, 1 << 31, (1 << 30) - 5000, 10)),
        WRONG_CHECKSUM,
        one("name", "other"),
        one("name", INFO),
        lambda row: row.update(members=[]),
        lambda row: row.update(frames=2**31 - 1),
        lambda row: row.update(frames=11),
        lambda row: row.update(tar="train-000001.tar"),
    ],
)
def test_an_index_that_lies_about_a_sample_costs_that_sample(
    tmp_path: Path, members: dict[str, Members], lie: Callable[[dict], object]
) -> None:
    folder = write_pair_set(tmp_path / "set", members)
    edit_index(folder, lie)
    for check in ("checksums", "digests"):
        stream = ShardStream(folder, replace(CONFIG, frame_px=32, check=check))
        slots = {slot.key: slot for slot in stream.batch(0, 2)}
        assert isinstance(slots["bad"], BadSlot) or (check == "digests" and lie is WRONG_CHECKSUM)
        assert isinstance(slots["good"], Window)


@pytest.mark.parametrize("lie", [one("digest", "0" * 20), one("digest", ""), lambda row: row.update(digest="")])
def test_an_index_that_lies_about_digests_is_found_out_where_they_are_looked_at(
    tmp_path: Path, members: dict[str, Members], lie: Callable[[dict], object]
) -> None:
    """The bytes that are handed out are the right ones in any case."""
    folder = write_pair_set(tmp_path / "set", members)
    whole = {w.key: w for w in ShardStream(folder, CONFIG).batch(0, 2)}["bad"]
    edit_index(folder, lie)
    assert "not those that its digest" in skipped(folder, replace(CONFIG, check="digests"))
    found = {w.key: w for w in ShardStream(folder, CONFIG).batch(0, 2)}["bad"]
    assert isinstance(found, Window) and isinstance(whole, Window) and np.array_equal(found.target, whole.target)


def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, members: dict[str, Members]) -> None:
    for i, (lie, complaint) in enumerate(
        [
            ({"sample": "good"}, "has sample good twice"),
            ({"sample": None}, r"\['sample'\] have no value"),
            ({"members": None}, r"\['members'\] have no value"),
            ({"members": [None]}, r"'members\.name', 'members\.offset', 'members\.size', 'members\.digest'\] have no value"),
            ({"members": [{"name": "json", "size": 0, "digest": ""}]}, r"\['members\.offset'\] have no value"),
            ({"size_px": -1}, "frames are -1 px"),
        ]
    ):
        folder = write_pair_set(tmp_path / str(i), members)
        edit_index(folder, lambda row, lie=lie: row.update(lie))
        with pytest.raises(ValueError, match=complaint):
            ShardStream(folder, CONFIG)
    folder = write_pair_set(tmp_path / "frames", members)
    edit_index(folder, lambda row: row.update(frames=-5))
    assert ShardStream(folder, CONFIG).skipped == 1
    (folder / INDEX_NAME).write_bytes((folder / INDEX_NAME).read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged table"):
        ShardStream(folder, CONFIG)


# --- what is nobody's sample's fault


def test_storage_that_fails_skips_nothing(tmp_path: Path, members: dict[str, Members], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pair_set(tmp_path / "set", members)
    stream = ShardStream(folder, CONFIG)
    folder.rename(tmp_path / "elsewhere")  # as a file system that is not mounted any more
    with pytest.raises(StorageError, match="was there before"):
        stream.batch(0, 2)
    with Prefetch(stream, 2, rank=0, world=1, threads=2) as prefetch, pytest.raises(StorageError, match="was there before"):
        list(prefetch.batches(0, 3))
    (tmp_path / "elsewhere").rename(folder)
    assert all(isinstance(slot, Window) for slot in stream.batch(0, 2))

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("schemas.store.DiskStore.read_ranges", fails)
    with pytest.raises(StorageError, match="mend the disk"):
        stream.batch(0, 2)


def test_a_bad_sample_is_logged_once(tmp_path: Path, members: dict[str, Members], caplog: pytest.LogCaptureFixture) -> None:
    folder = write_pair_set(tmp_path / "set", members | {"bad": members["bad"] | {TARGET: b"?"}})
    stream = ShardStream(folder, CONFIG)
    with caplog.at_level(logging.WARNING):
        slots = stream.batch(0, 8)
    assert sum(isinstance(slot, BadSlot) for slot in slots) == 4
    assert len(caplog.records) == 1 and "sample bad" in caplog.text


def test_many_bad_samples_in_a_row_stop_the_job(tmp_path: Path, members: dict[str, Members]) -> None:
    folder = write_pair_set(tmp_path / "all", {"bad": members["bad"] | {INFO: b"{}"}}, keys=["bad"])
    stream = ShardStream(folder, CONFIG)
    with Prefetch(stream, 7, rank=0, world=1, threads=2) as prefetch:
        batches = prefetch.batches(5, 1000)
        assert [len(next(batches)) for _ in range(14)] == [7] * 14  # 98
        with pytest.raises(ValueError, match=r"100 samples in a row cannot be used, the last at position 104: .*sample bad: no crosspair"):
            next(batches)
    mixed = write_pair_set(tmp_path / "mixed", members | {"bad": members["bad"] | {INFO: b"{}"}}, keys=["bad", "good"])
    stream = ShardStream(mixed, replace(CONFIG, max_bad_in_a_row=3))  # two in a row there are, where epochs meet
    with Prefetch(stream, 4, rank=0, world=1) as prefetch:
        slots = [slot for batch in prefetch.batches(0, 10) for slot in batch]
    assert [s.position for s in slots] == list(range(40)) and sum(isinstance(s, BadSlot) for s in slots) == 20


def test_threads_read_ahead_within_bounds_and_in_order(tmp_path: Path, members: dict[str, Members]) -> None:
    stream = ShardStream(write_pair_set(tmp_path / "set", members), CONFIG)
    asked: list[int] = []
    slot = stream.slot
    stream.slot = lambda p: (asked.append(p), slot(p))[1]  # type: ignore[method-assign]
    with Prefetch(stream, 3, rank=1, world=2, threads=3, ahead=2) as prefetch:
        batches = prefetch.batches(10, 6)
        first = next(batches)
    assert [w.position for w in first] == [11] and set(asked) <= {11, 14, 17} and asked
    with Prefetch(stream, 4, rank=1, world=2, threads=3, ahead=0) as prefetch:
        assert [[w.position for w in b] for b in prefetch.batches(0, 3)] == [[1, 3], [5, 7], [9, 11]]


def test_regions_can_be_all_invisible(tmp_path: Path, members: dict[str, Members]) -> None:
    """Nowhere near the picture matters only where something is seen."""
    hidden = Regions(OUTLINES * np.float32(np.nan), np.zeros_like(VALID)).encode()
    stream = ShardStream(write_pair_set(tmp_path / "set", {"bad": members["bad"] | {REGIONS_MEMBER: hidden}}), CONFIG)
    assert not stream.read(0).driving.any()


def test_headers_alone_are_checked_where_that_is_asked_for(members: dict[str, Members], tmp_path: Path) -> None:
    """Members in each other's places, or cut off, are still found; a byte within one is not."""
    folder = write_pair_set(tmp_path / "set", members)
    trusting = replace(CONFIG, check="headers")
    stream, careful = ShardStream(folder, trusting), ShardStream(folder, CONFIG)
    position = next(p for p in (0, 1) if stream.key(p) == "bad")
    assert stream.members(position) == careful.members(position) == members["bad"]
    row = next(r for r in pq.read_table(folder / INDEX_NAME).to_pylist() if r["sample"] == "bad")
    at = next(m for m in row["members"] if m["name"] == SOURCE)["offset"] + 60
    edit_tar(folder, lambda data: data[:at] + b"?" + data[at + 1 :])
    assert stream.members(position)[SOURCE] != members["bad"][SOURCE]
    with pytest.raises(ValueError, match=r"source\.png holds other bytes"):
        careful.members(position)
    edit_tar(folder, lambda data: data[:at])
    with pytest.raises(ValueError, match="ended"):
        stream.members(position)
