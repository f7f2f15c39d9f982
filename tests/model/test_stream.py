"""The stream: an order that depends on nothing but seed and position, windows that are the clip's own frames, and clear refusals."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pairset import FRAMES, INFO_TEMPLATE, SIZE_PX, members_of, regions_of, write_pair_set

from model.cut import frame_outside
from model.order import Uniform
from model.stream import Prefetch, ShardStream, StreamConfig, Window, find_pair_set
from schemas.ids import digest
from schemas.outlines import outlines_of
from schemas.regions import Regions, masked_driving, rasterise
from schemas.sample import (
    CONTROLS,
    DRIVING,
    INDEX_NAME,
    INDEX_SCHEMA,
    INFO,
    REGIONS_MEMBER,
    SOURCE,
    TARGET,
    decode_image,
    encode_controls,
    read_members,
)
from schemas.video import decode_video
from stages.head import Pose, canonical

CONFIG = StreamConfig(frames=4, history=2)


def key_of(window: Window) -> tuple[str, int]:
    return window.key, window.first_frame


def member(pair_set: Path, key: str, name: str) -> bytes:
    rows = {r["sample"]: r for r in pq.read_table(pair_set / INDEX_NAME).to_pylist()}
    return read_members(pair_set, rows[key], (name,))[name]


def first_of(folder: Path, key: str) -> int:
    """The position of a sample in the first epoch."""
    stream = ShardStream(folder, CONFIG)
    return [stream.key(p) for p in range(len(stream))].index(key)


def test_each_epoch_has_every_sample_once_in_an_order_of_its_own(pair_set: Path) -> None:
    stream = ShardStream(pair_set, CONFIG)
    assert len(stream) == 3 and stream.skipped == 1
    orders = [tuple(stream.key(p) for p in range(3 * e, 3 * e + 3)) for e in range(20)]
    assert all(sorted(o) == stream.keys for o in orders) and len(set(orders)) > 3
    seen = Counter(stream.read(p).key for p in range(6))
    assert set(seen) == set(stream.keys) == {digest(k) for k in FRAMES if k != "short"} and set(seen.values()) == {2}


def test_the_order_is_pure(pair_set: Path) -> None:
    a, b = ShardStream(pair_set, CONFIG), ShardStream(pair_set, CONFIG)
    backwards = [key_of(b.read(p)) for p in reversed(range(7))][::-1]
    assert [key_of(a.read(p)) for p in range(7)] == backwards
    other = ShardStream(pair_set, replace(CONFIG, seed=1))
    assert [key_of(other.read(p)) for p in range(7)] != backwards
    assert other.digest == a.digest  # names the data, not the order


def test_the_order_never_changes_between_versions() -> None:
    """These numbers are what a checkpoint's position refers to."""
    order = Uniform(8, 0)
    assert [order.at(p) for p in range(16)] == [7, 6, 1, 2, 5, 3, 4, 0, 3, 6, 1, 5, 2, 4, 7, 0]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_workers_share_a_global_batch_whatever_their_number(pair_set: Path, world: int) -> None:
    stream = ShardStream(pair_set, CONFIG)
    shares = [stream.batch(8, 4, rank=r, world=world) for r in range(world)]
    assert sorted(w.position for share in shares for w in share) == [8, 9, 10, 11]
    assert {key_of(w) for share in shares for w in share} == {key_of(stream.read(p)) for p in range(8, 12)}


def test_a_window_is_that_part_of_the_clip(pair_set: Path) -> None:
    stream = ShardStream(pair_set, CONFIG)
    for window in (stream.read(p) for p in range(6)):
        first = window.first_frame
        target = decode_video(member(pair_set, window.key, TARGET))
        assert np.array_equal(window.target, target[first : first + 6])
        driving = decode_video(member(pair_set, window.key, DRIVING))
        regions = regions_of(len(driving))
        for t, frame in enumerate(window.driving):
            at = first + CONFIG.history + t
            masks = rasterise(regions, at, SIZE_PX, dilate_px=0.01 * SIZE_PX)
            assert np.array_equal(frame, masked_driving(driving[at], masks))


def test_another_region_profile_needs_no_other_shard(tmp_path: Path) -> None:
    """The outlines of `wide` come from the mesh points that stand in the sample; without them a sentence says what is missing."""
    frames = 12
    pose = Pose(np.full(frames, 70.0), np.repeat(np.eye(3)[None], frames, 0), np.full((frames, 3), SIZE_PX / 2.0))
    points = (np.rint(pose.apply(canonical()) * 32) / 32).astype(np.float32)  # as controls.npz keeps them
    valid = np.ones((frames, 4), bool)
    valid[:, 1] = False
    none = np.zeros((frames, 4, 4))
    samples = {"a": members_of("a", frames, tmp_path)}
    samples["a"] |= {REGIONS_MEMBER: Regions(outlines_of(points), valid).encode(), CONTROLS: encode_controls(points, points, none, none)}
    folder = write_pair_set(tmp_path / "set", samples)
    window = ShardStream(folder, replace(CONFIG, regions="wide")).read(0)
    at = window.first_frame + CONFIG.history
    driving = decode_video(samples["a"][DRIVING])[at]
    wide = rasterise(Regions(outlines_of(points, "wide"), valid), at, SIZE_PX, dilate_px=0.01 * SIZE_PX)
    assert np.array_equal(window.driving[0], masked_driving(driving, wide))
    assert not np.array_equal(window.driving, ShardStream(folder, CONFIG).read(0).driving)
    with pytest.raises(ValueError, match="wide"):
        ShardStream(folder, replace(CONFIG, regions="wild"))
    bare = write_pair_set(tmp_path / "bare", {"a": members_of("a", frames, tmp_path)})
    with pytest.raises(ValueError, match=r"controls\.npz.*missing"):
        ShardStream(bare, replace(CONFIG, regions="wide")).read(0)


def test_the_source_is_a_frame_of_the_target_outside_the_window(pair_set: Path) -> None:
    stream = ShardStream(pair_set, CONFIG)
    stills = set()
    for window in (stream.read(p) for p in range(9)):
        target = decode_video(member(pair_set, window.key, TARGET))
        found = [i for i, frame in enumerate(target) if np.array_equal(frame, window.source)]
        assert found and not set(found) <= set(range(window.first_frame, window.first_frame + 6))
        stills.add((window.key, found[0]))
    assert len(stills) > 5


def test_no_frame_of_the_window_is_ever_the_source_and_any_other_can_be() -> None:
    for first in range(10 - 6 + 1):
        assert {frame_outside(10, first, 6, draw) for draw in range(20)} == set(range(10)) - set(range(first, first + 6))
    assert frame_outside(6, 0, 6, 5) == -1


def test_the_source_is_the_still_where_the_window_covers_the_clip(pair_set: Path) -> None:
    stream = ShardStream(pair_set, StreamConfig(frames=46, history=2))  # only "c" is that long
    window = stream.read(0)
    assert window.first_frame == 0 and np.array_equal(window.source, decode_image(member(pair_set, window.key, SOURCE)))


def test_masks_grow_with_dilation_and_frames_are_resized(pair_set: Path) -> None:
    shown = []
    for dilation in (0.0, 0.02, 0.05):
        window = ShardStream(pair_set, replace(CONFIG, mask_dilation=dilation, frame_px=32)).read(0)
        assert window.source.shape == (32, 32, 3) and window.target.shape == (6, 32, 32, 3) and window.driving.shape == (4, 32, 32, 3)
        shown.append((window.driving > 0).mean())
    assert shown[0] > 0 and all(a < b for a, b in pairwise(shown)) and shown[-1] < 0.5


def test_reading_ahead_changes_nothing(pair_set: Path) -> None:
    stream = ShardStream(pair_set, CONFIG)
    with Prefetch(stream, 2, rank=0, world=1) as prefetch:
        ahead = [key_of(w) for batch in prefetch.batches(3, 3) for w in batch]
    assert ahead == [key_of(stream.read(p)) for p in range(3, 9)]


def test_a_run_names_its_only_pair_set(pair_set: Path, tmp_path: Path) -> None:
    assert find_pair_set(pair_set) == find_pair_set(pair_set.parent.parent) == pair_set
    (tmp_path / "shards").mkdir()
    with pytest.raises(ValueError, match="none yet"):
        find_pair_set(tmp_path)


def test_clips_that_are_all_too_short_are_an_error_that_says_so(pair_set: Path) -> None:
    with pytest.raises(ValueError, match=r"all 4 clips are shorter than the window of 49 frames .* the longest has 48"):
        ShardStream(pair_set, StreamConfig(frames=46, history=3))


def test_an_unknown_split_names_the_known_ones(pair_set: Path) -> None:
    with pytest.raises(ValueError, match=r"'val'.*\['train'\]"):
        ShardStream(pair_set, replace(CONFIG, split="val"))


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    members = members_of("k", 12, tmp_path)
    members[INFO] = members[INFO].replace(b"crosspair/1", b"crosspair/2")
    stream = ShardStream(write_pair_set(tmp_path / "set", {"k": members}), CONFIG)
    with pytest.raises(ValueError, match=r"sample k: sample format is 'crosspair/2'"):
        stream.read(0)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    import io

    out = io.BytesIO()
    np.savez(out, outlines=np.array([{"a": 1}], dtype=object), valid=np.zeros(1))
    members = members_of("k", 12, tmp_path) | {"regions.npz": out.getvalue()}
    stream = ShardStream(write_pair_set(tmp_path / "set", {"k": members}), CONFIG)
    with pytest.raises(ValueError, match="without pickle"):
        stream.read(0)


def test_the_sample_in_the_tar_must_be_the_one_that_the_index_means(tmp_path: Path) -> None:
    members = members_of("k", 12, tmp_path)
    members[INFO] = members[INFO].replace(b'"key":"k"', b'"key":"j"')
    stream = ShardStream(write_pair_set(tmp_path / "set", {"k": members}, keys=["k"]), CONFIG)
    with pytest.raises(ValueError, match=r"train-000000.tar: sample k: its key is 'j', the index says 'k'"):
        stream.read(0)


@pytest.mark.parametrize(("said", "complaint"), [({"frames": 13}, "frames is 13, .* 12"), ({"size_px": 64}, "size_px is 64, .* 96")])
def test_sizes_that_differ_from_the_index_are_refused(tmp_path: Path, said: dict, complaint: str) -> None:
    members = members_of("k", 12, tmp_path)
    members[INFO] = replace(INFO_TEMPLATE, key="k", **({"frames": 12} | said)).encode()
    folder = write_pair_set(tmp_path / "set", {"k": members})
    rows = pq.read_table(folder / INDEX_NAME).to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0] | {"frames": 12, "size_px": SIZE_PX}], INDEX_SCHEMA), folder / INDEX_NAME)
    with pytest.raises(ValueError, match=f"sample k: its {complaint}"):
        ShardStream(folder, CONFIG).read(0)


def test_regions_shorter_than_the_video_are_refused(tmp_path: Path) -> None:
    members = members_of("k", 12, tmp_path) | {REGIONS_MEMBER: regions_of(3).encode()}
    stream = ShardStream(write_pair_set(tmp_path / "set", {"k": members}), CONFIG)
    with pytest.raises(ValueError, match="sample k: regions of 3 frames for a video of 12"):
        stream.read(0)


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    folder = write_pair_set(tmp_path / "set", {"k": members_of("k", 12, tmp_path)})
    (folder / "train-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000000.tar: sample k: .*No such file"):
        ShardStream(folder, CONFIG).read(0)


def test_frames_grow_without_steps(pair_set: Path) -> None:
    """A picture of twice the size has values between those of neighbours, which repeating pixels has not."""
    small, large = (ShardStream(pair_set, replace(CONFIG, frame_px=px)).read(0).source for px in (SIZE_PX, 2 * SIZE_PX))
    assert not np.array_equal(large, small.repeat(2, 0).repeat(2, 1))
    assert np.abs(large[1::2, 1::2].astype(int) - small).mean() < 8


def test_a_damaged_video_names_the_sample(tmp_path: Path) -> None:
    members = members_of("k", 12, tmp_path)
    stream = ShardStream(write_pair_set(tmp_path / "set", {"k": members | {TARGET: members[TARGET][:200]}}), CONFIG)
    with pytest.raises(ValueError, match="sample k: not a readable crosspair video"):
        stream.read(0)
