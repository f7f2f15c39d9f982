"""The sample: typed JSON, deterministic tars that everybody reads, windows of video that are frame-exact."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampleinfo import ANY_INFO

from schemas.ids import checksum, content_digest
from schemas.sample import (
    FORMAT,
    INDEX_NAME,
    INDEX_SCHEMA,
    SampleInfo,
    decode_controls,
    decode_image,
    encode_controls,
    finish_tar,
    index_row,
    read_index,
    read_members,
    sample_digest,
    tar_header,
    write_tar_sample,
)
from schemas.video import decode_video
from stages.encode import VideoWriter, encode_png

INFO = replace(
    ANY_INFO,
    performer="Zoë",
    appearance='B "b"',
    source_first_frame=3,
    source_last_frame=40,
    source_fps=29.97,
    generator="meshwarp",
    frames=32,
    size_px=128,
    has_audio=True,
)


def test_a_sample_says_of_itself_the_same_when_read_back() -> None:
    assert SampleInfo.decode(INFO.encode()) == INFO


def test_the_json_has_no_nulls_and_says_what_is_synthetic() -> None:
    raw = json.loads(INFO.encode())
    assert None not in raw.values()
    assert raw["synthetic"] is True and raw["format"] == FORMAT


def test_keys_may_be_added() -> None:
    assert SampleInfo.decode(json.dumps({**json.loads(INFO.encode()), "new": 1}).encode()) == INFO


@pytest.mark.parametrize("other", ["crosspair/2", "other/1", "", "crosspair"])
def test_another_major_format_is_refused_with_a_sentence(other: str) -> None:
    with pytest.raises(ValueError, match=r"crosspair/1.*use the version that wrote it"):
        SampleInfo.decode(json.dumps({**json.loads(INFO.encode()), "format": other}).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"format": "crosspair/1"}', b'{"format": 3}', b"\xff\xfe", b"null"])
def test_what_is_no_sample_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        SampleInfo.decode(data)


def test_controls_keep_points_to_a_thirtysecond_and_lost_frames() -> None:
    points = np.random.default_rng(0).uniform(0, 576, (3, 478, 3)).astype(np.float32)
    lost = points.copy()
    lost[1] = np.nan
    back = decode_controls(encode_controls(points, lost, np.eye(4)[None].repeat(3, 0), np.full((3, 4, 4), np.nan)))
    assert {k: v.dtype for k, v in back.items()} == dict.fromkeys(back, np.float32)
    assert np.abs(back["target_points"] - points).max() <= 1 / 64
    np.testing.assert_array_equal(np.isnan(back["driving_points"]).all((1, 2)), [False, True, False])
    assert back["driving_pose"].shape == (3, 4, 4)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"text"])
def test_a_damaged_png_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="PNG"):
        decode_image(data)


def test_a_png_is_rgb() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 200
    np.testing.assert_array_equal(decode_image(encode_png(image)), image)


@given(st.dictionaries(st.sampled_from("abcd"), st.text("0123456789abcdef", min_size=20, max_size=20), min_size=1))
def test_a_samples_digest_depends_on_members_not_on_their_order(members: dict[str, str]) -> None:
    assert sample_digest(members) == sample_digest(dict(reversed(members.items())))
    assert sample_digest(members) != sample_digest({**members, "e": "0" * 20})


MEMBERS = {"json": INFO.encode(), "target.mp4": b"t" * 1000, "audio.flac": b"a" * 512, "source.png": b"", "regions.npz": b"r"}


def a_tar() -> tuple[bytes, list[dict]]:
    out = io.BytesIO()
    entries = write_tar_sample(out, "k1", MEMBERS) + write_tar_sample(out, "k2", {"json": b"{}"})
    finish_tar(out)
    return out.getvalue(), entries


def test_a_tar_is_the_same_bytes_for_ever() -> None:
    assert a_tar()[0] == a_tar()[0]
    assert content_digest(tar_header("k.target.mp4", 123456)) == "19d53812c80518b0d9f5"
    assert len(a_tar()[0]) % tarfile.RECORDSIZE == 0


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120),
    st.one_of(st.integers(0, 8**11 - 1), st.integers(0, 10)),
)
def test_a_header_is_the_one_that_tarfile_makes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        with pytest.raises(ValueError, match="too long"):
            tar_header(name, size)
    else:
        assert tar_header(name, size) == expected


def test_tarfile_reads_it_where_the_index_says() -> None:
    data, entries = a_tar()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [
            "k1.audio.flac",
            "k1.json",
            "k1.regions.npz",
            "k1.source.png",
            "k1.target.mp4",
            "k2.json",
        ]
        for member, entry in zip(members, entries, strict=True):
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            found = {"offset": member.offset_data, "size": member.size, "digest": content_digest(content), "checksum": checksum(content)}
            assert found.items() <= entry.items()
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_tar_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(a_tar()[0])
    subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, check=True)
    assert {n: (tmp_path / f"k1.{n}").read_bytes() for n in MEMBERS} == MEMBERS


def test_members_are_read_by_their_place(tmp_path: Path) -> None:
    data, entries = a_tar()
    (tmp_path / "a.tar").write_bytes(data)
    row = {"sample": "k1", "tar": "a.tar", "members": entries[:5]}
    assert read_members(tmp_path, row, ("json", "target.mp4", "latents")) == {n: MEMBERS[n] for n in ("json", "target.mp4")}
    (tmp_path / "a.tar").write_bytes(data[: entries[4]["offset"] + 10])
    with pytest.raises(ValueError, match=r"a\.tar: k1\.target\.mp4 does not have its digest"):
        read_members(tmp_path, row, ("target.mp4",))


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no index"):
        read_index(tmp_path)
    pq.write_table(pa.table({"sample": ["a"]}), tmp_path / INDEX_NAME)
    with pytest.raises(ValueError, match="columns"):
        read_index(tmp_path)


def test_an_index_in_parts_is_read_whole(tmp_path: Path) -> None:
    entries = a_tar()[1]
    rows = [index_row(replace(INFO, key=f"k{k}"), f"{k}.tar", entries, {"pose_error_deg": float(k)}) for k in range(5)]
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata({"a": "b"}))
    pq.write_table(table, tmp_path / INDEX_NAME, row_group_size=2)
    read = read_index(tmp_path)
    assert read.to_pylist() == table.to_pylist() and read.schema.metadata == table.schema.metadata and read["members"].num_chunks == 3
    pq.write_table(table.slice(0, 0), tmp_path / INDEX_NAME)
    assert read_index(tmp_path).schema.metadata == table.schema.metadata


def test_an_index_whose_text_is_none_is_refused_by_name(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([index_row(INFO, "0.tar", a_tar()[1], {})], schema=INDEX_SCHEMA)
    raw = pa.array([b"\xff.tar"], pa.binary())
    no_text = pa.StringArray.from_buffers(1, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(table.set_column(table.column_names.index("tar"), "tar", no_text), tmp_path / INDEX_NAME)
    with pytest.raises(ValueError, match=r"index\.parquet: a damaged table; put back"):
        read_index(tmp_path)


def test_an_index_is_read_in_a_folder_named_like_a_partition(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1" / "set"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([], schema=INDEX_SCHEMA), folder / INDEX_NAME)
    assert read_index(folder).column_names == INDEX_SCHEMA.names


def pictures(frames: int, size: int = 64) -> list[np.ndarray]:
    """Each frame's number is written in it as a brightness."""
    y, x = np.mgrid[:size, :size]
    return [np.stack([(x + 5 * k) % 256, np.full_like(x, 20 + 5 * k), y], -1).astype(np.uint8) for k in range(frames)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with VideoWriter(path, 25, 64) as writer:
        for picture in pictures(40):
            writer.write(picture)
    return path


def test_every_window_equals_the_same_stretch_of_the_whole(video: Path) -> None:
    whole = decode_video(video)
    assert whole.shape == (40, 64, 64, 3) and whole.dtype == np.uint8
    data = video.read_bytes()
    for first in range(40):
        count = min(1 + first % 7, 40 - first)
        np.testing.assert_array_equal(decode_video(data, first=first, count=count), whole[first : first + count])


@pytest.mark.parametrize("fps", [12, 24, 30, 50, 60])
def test_windows_are_exact_at_every_rate(tmp_path: Path, fps: int) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps, 64) as writer:
        for picture in pictures(30):
            writer.write(picture)
    levels = decode_video(tmp_path / "a.mp4")[..., 1].mean((1, 2))
    np.testing.assert_allclose(levels, [20 + 5 * k for k in range(30)], atol=2.4)
    for first in (1, 11, 12, 13, 29):
        assert abs(decode_video(tmp_path / "a.mp4", first=first, count=1)[..., 1].mean() - levels[first]) == 0


def test_a_video_of_one_frame_is_read(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 25, 64) as writer:
        writer.write(pictures(1)[0])
    assert len(decode_video(tmp_path / "a.mp4")) == 1


@pytest.mark.parametrize(("first", "count"), [(0, 41), (39, 2), (40, 1), (1000, None)])
def test_asking_for_frames_that_are_not_there_is_a_value_error(video: Path, first: int, count: int | None) -> None:
    with pytest.raises(ValueError, match="video ends"):
        decode_video(video, first=first, count=count)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.97])
def test_a_damaged_video_is_a_value_error(video: Path, keep: float) -> None:
    data = video.read_bytes()
    with pytest.raises(ValueError):
        decode_video(data[: int(keep * len(data)) if keep < 1 else int(keep)], count=40)
