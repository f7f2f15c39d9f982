"""Latents: encodes what a pair set's targets and stills show, once, and gives training the windows of it (schemas/latents.py: the format).

Driving frames are not among them: what is seen of those depends on the regions' profile and on how far the masks are dilated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from model.codec import LatentCodec
from model.stream import BadSlot, ShardStream, Window
from schemas.ids import digest
from schemas.latents import (
    FOLDER,
    EncodedBy,
    LatentsIndex,
    clear_unnamed,
    encode_latents,
    layout,
    prune,
    publish,
    read_latents,
    read_latents_index,
    tar_name,
    whole_tars,
    write_member,
)
from schemas.sample import INDEX_NAME, SOURCE, TARGET, decode_image, finish_tar, read_index, read_members
from schemas.store import Place, Store, open_store
from schemas.video import decode_video, resized

# Shape suffixes: T frames, C latent channels, H W latent rows and columns.

CHUNK_FRAMES = 24  # decoded and encoded together: two spans between keyframes
_PUBLISHED_PARTS = 50  # a kill costs this part of what is there, or a tar; the index of many samples is not written for each tar
_MEMBER_ROOM = 2048  # of a member in a tar, beside its data

Row = dict[str, Any]
_T = TypeVar("_T")


@dataclass
class Written:
    """What `write_latents` did.

    Attributes:
        kept, made: samples whose latents were there, and that were encoded.
        bad: samples that could not be, and why. Training encodes those itself, or says the same of them.
    """

    kept: int = 0
    made: int = 0
    bad: dict[str, str] = field(default_factory=dict)


def encoded_by(codec: LatentCodec, frame_px: int) -> EncodedBy:
    """What latents of frames of this side will be of. Raises ValueError for a side that the codec cannot take."""
    if frame_px % codec.factor:
        raise ValueError(f"frames of {frame_px} px: codec {codec.name} takes multiples of {codec.factor}; name another side (--frame-px)")
    side = frame_px // codec.factor
    return EncodedBy(codec=codec.name, fingerprint=codec.fingerprint(), frame_px=frame_px, channels=codec.channels, side=side)


def write_latents(
    place: Place,
    codec: LatentCodec,
    *,
    frame_px: int | None = None,
    tar_mb: int = 512,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Written:
    """Brings SET/latents to hold the latents of all samples of the set: for the one process that works on it.

    What is there already stays, tar by tar; killed anywhere and run again, it ends in the same bytes. Pairs of one clip have the same
    still and target: they come one after another, and these are encoded once, from the first of them that is left to do, whose bytes
    alone are read. The pictures of one are in hand at a time.

    Args:
        place: the set's folder.
        frame_px: side that frames are resized to; None: as in the shards.
        tar_mb: a tar is full at so many MB.
        device: where to encode; None: the CPU.

    Raises:
        ValueError: no set, or a damaged index; latents of another codec are there; a side that does not fit.
    """
    pair_set = open_store(place)
    samples: list[Row] = read_index(pair_set).to_pylist()
    folder, by = pair_set.sub(FOLDER), encoded_by(codec, _side(pair_set, samples, frame_px))
    index = read_latents_index(folder) or LatentsIndex(by)
    _check_same(folder, index.codec, by)
    folder.clear_unfinished()
    clear_unnamed(folder, index)
    whole = whole_tars(folder, index)
    lost = {r["sample"] for r in index.rows if r["tar"] not in whole}
    prune(pair_set, {r["sample"]: r["digest"] for r in samples if r["sample"] not in lost}, say)
    index = read_latents_index(folder) or LatentsIndex(by)
    there = {r["sample"] for r in index.rows}
    due: dict[str, list[Row]] = defaultdict(list)
    for r in _by_pictures(samples):  # of all that there are, so that a run that goes on after a kill has the same order
        if r["sample"] not in there:
            due[r["split"]].append(r)
    written, work = Written(kept=len(there)), _Encoding(pair_set, codec, by, device or torch.device("cpu"), say)
    total, unpublished = sum(map(len, due.values())), 0
    for split in sorted(due):
        for rows in _tars(folder, index, split, work.members(due[split]), tar_mb << 20):
            index = replace(index, rows=[*index.rows, *rows], next_tar=index.next_tar + 1)
            written.made += len(rows)
            unpublished += len(rows)
            if unpublished * _PUBLISHED_PARTS >= len(index.rows):
                publish(folder, index)
                unpublished = 0
            say(f"{rows[0]['tar']}: {len(rows)} samples; {written.made + len(work.bad)} of {total}")
    publish(folder, index)
    written.bad = work.bad
    return written


def _by_pictures(samples: Sequence[Row]) -> list[Row]:
    """In the same order, but that those with the same still and target follow the first of them."""
    first: dict[tuple[str, str, int], int] = {}
    for i, row in enumerate(samples):
        first.setdefault(_shown(row), i)
    return sorted(samples, key=lambda r: first[_shown(r)])


def _shown(row: Row) -> tuple[str, str, int]:
    """Digests of what is encoded of a sample, and how many frames."""
    digests = {m["name"]: m["digest"] for m in row["members"]}
    return digests.get(SOURCE, ""), digests.get(TARGET, ""), row["frames"]


def _side(pair_set: Store, samples: Sequence[Row], frame_px: int | None) -> int:
    sizes = sorted({r["size_px"] for r in samples})
    if frame_px is None and len(sizes) != 1:
        raise ValueError(f"{pair_set}: frames are {sizes or 'of no known'} px; name the side to encode them at (--frame-px)")
    return frame_px or sizes[0]


def _check_same(folder: Store, there: EncodedBy, wanted: EncodedBy) -> None:
    if there == wanted:
        return
    if there.codec != wanted.codec or there.frame_px != wanted.frame_px:
        differ = f"are of codec {there.codec} at {there.frame_px} px, not of {wanted.codec} at {wanted.frame_px} px"
    else:
        differ = f"are of codec {there.codec} with other weights"
    raise ValueError(
        f"{folder}: these latents {differ}; use them with what they were made with, "
        f"or take this folder away and make others: `crosspair latents --codec {wanted.codec} --frame-px {wanted.frame_px}`"
    )


def _tars(folder: Store, index: LatentsIndex, split: str, members: Iterator[tuple[Row, bytes]], max_bytes: int) -> Iterator[list[Row]]:
    """Writes members into tars, each filled up to `max_bytes`; the index's rows of each."""
    number, waiting = index.next_tar, next(members, None)
    while waiting is not None:
        tar, room, rows = tar_name(split, number), max_bytes, list[Row]()
        with folder.writing(tar) as out:
            while waiting is not None:
                sample, data = waiting
                if rows and len(data) + _MEMBER_ROOM > room:
                    break
                offset, size, content = write_member(out, sample["sample"], data)
                about = {"sample": sample["sample"], "sample_digest": sample["digest"], "split": split, "frames": sample["frames"]}
                rows.append({**about, "tar": tar, "offset": offset, "size": size, "digest": content})
                room -= len(data) + _MEMBER_ROOM
                waiting = next(members, None)
            finish_tar(out)
        yield rows
        number += 1


class _Encoding:
    """Encodes samples one after another, in this thread; the next pictures are decoded in another. `bad`: which could not be, and why."""

    def __init__(self, pair_set: Store, codec: LatentCodec, by: EncodedBy, device: torch.device, say: Callable[[str], None]) -> None:
        self._pair_set, self._codec, self._by, self._device, self._say = pair_set, codec, by, device, say
        self.bad: dict[str, str] = {}

    def members(self, rows: Sequence[Row]) -> Iterator[tuple[Row, bytes]]:
        """The rows whose samples are whole, with their latents."""
        with ThreadPoolExecutor(1, "decode") as pool:
            parts: list[np.ndarray] = []
            for same, found in _ahead(pool, self._decoded(rows)):
                if isinstance(found, np.ndarray):
                    parts.append(self._codec.encode(torch.from_numpy(found).to(self._device)).half().cpu().numpy())
                    continue
                for row in same:
                    try:
                        if found is not None:
                            raise found
                        data = encode_latents(row["sample"], self._by, np.concatenate(parts))
                    except ValueError as e:
                        self.bad[row["sample"]] = str(e)
                        self._say(f"{row['sample']}: left out: {e}")
                    else:
                        yield row, data
                parts = []

    def _decoded(self, rows: Sequence[Row]) -> Iterator[tuple[Sequence[Row], np.ndarray | ValueError | None]]:
        """Pictures, a chunk after another, and then the samples that show them and None; or a sample and its error, and no more of it."""
        for _, group in groupby(rows, _shown):
            same = list(group)
            while same:  # each has bytes of its own: where one's are damaged, the next one's may not be
                try:
                    for chunk in _pictures(self._pair_set, same[0], self._by.frame_px):
                        yield [], chunk
                    yield same, None
                    break
                except ValueError as e:
                    yield [same.pop(0)], e


def _pictures(pair_set: Store, row: Row, frame_px: int) -> Iterator[np.ndarray]:
    """The still, then the target's frames: uint8 RGB (1, S, S, 3) and (T, S, S, 3), as the stream shows them to training."""
    members = read_members(pair_set, row, (SOURCE, TARGET))
    missing = {SOURCE, TARGET} - set(members)
    if missing:
        raise ValueError(f"members {sorted(missing)} are missing")
    yield resized(decode_image(members[SOURCE]), frame_px)[None]
    for first in range(0, row["frames"], CHUNK_FRAMES):
        frames = decode_video(members[TARGET], first=first, count=min(CHUNK_FRAMES, row["frames"] - first))
        yield np.stack([resized(f, frame_px) for f in frames])


def _ahead(pool: ThreadPoolExecutor, items: Iterator[_T]) -> Iterator[_T]:
    """The same items, each made while the one before is worked on."""
    end = object()
    waiting = pool.submit(next, items, end)
    while (item := waiting.result()) is not end:
        waiting = pool.submit(next, items, end)
        yield item  # type: ignore[misc]


class Latents:
    """What was encoded of a pair set, for reading.

    Args:
        place: the set's folder.
        codec: that training encodes the rest with.
        frame_px: side of training's frames.
        digests: sample -> digest of the samples that are to be read; None: as the set's index has them now.

    Attributes:
        digest: names the latents and their bytes, as far as they are of these samples: training that took them goes on with the same.

    Raises:
        ValueError: no latents there, damaged ones, or of another codec, other weights or another side; names the remedy.
    """

    def __init__(self, place: Place, codec: LatentCodec, frame_px: int, digests: Mapping[str, str] | None = None) -> None:
        pair_set = open_store(place)
        if digests is None:
            table = read_index(pair_set)
            digests = dict(zip(table["sample"].to_pylist(), table["digest"].to_pylist(), strict=True))
        self._folder, self._by, self._digests = pair_set.sub(FOLDER), encoded_by(codec, frame_px), digests
        self._rows = self._read()
        self.digest = digest("latents", *(part for k in sorted(self._rows) for part in (k, self._rows[k]["digest"])))

    def __len__(self) -> int:
        """Samples that there are latents of."""
        return len(self._rows)

    def window(self, key: str, first: int, count: int, source_frame: int) -> tuple[Tensor, Tensor] | None:
        """Latents of target frames `first` .. `first + count - 1` and of the source, float32 (count, C, H, W) and (C, H, W).

        Reads and checks these alone: about `count + 1` times 2 C H W bytes. They differ from those encoded now by the rounding to 16 bits.

        Args:
            key: the sample.
            source_frame: a frame of the target, or -1 for the sample's still.

        Returns:
            None where there are no latents of this sample, or of other bytes than it has.

        Raises:
            ValueError: damage; names the tar and the remedy.
        """
        for again in (False, True):
            row = self._rows.get(key)
            if row is None:
                return None
            try:
                found_TCHW = read_latents(self._folder, self._by, row, first, count, source_frame)
            except FileNotFoundError as e:  # a sample of its tar was withdrawn: the index says where this one is now
                if again:
                    raise ValueError(f"{self._folder.at(row['tar'])}: missing; `crosspair latents` makes it anew") from e
                self._rows = self._read()
            else:
                latents_TCHW = torch.from_numpy(found_TCHW.astype(np.float32))
                return latents_TCHW[:-1], latents_TCHW[-1]
        raise AssertionError

    def _read(self) -> dict[str, Row]:
        index = read_latents_index(self._folder)
        if index is None:
            raise ValueError(
                f"{self._folder}: no latents; make them (`crosspair latents SHARDS --codec {self._by.codec} --frame-px "
                f"{self._by.frame_px}`), or train without"
            )
        _check_same(self._folder, index.codec, self._by)
        found = {}
        for r in index.rows:
            whole = r["size"] == layout(self._by, r["frames"]).size
            if not whole:
                raise ValueError(f"{self._folder.at(INDEX_NAME)}: contradicts itself on sample {r['sample']}; `crosspair verify` says more")
            if self._digests.get(r["sample"]) == r["sample_digest"]:
                found[r["sample"]] = r
        return found


@dataclass(frozen=True, kw_only=True)
class EncodedWindow(Window):
    """A window whose target and source come as latents, float32, in place of pictures."""

    target_TCHW: Tensor  # the previous frames, then those to be made
    source_CHW: Tensor


class EncodedStream:
    """A stream's windows with latents, to be read ahead as those of the stream; with pictures where there are none of a sample."""

    def __init__(self, stream: ShardStream, latents: Latents) -> None:
        self.config, self._pictures, self._driving, self._latents = stream.config, stream, stream.driving_only(), latents

    def slot(self, position: int) -> Window | BadSlot:
        """As `ShardStream.slot`; damaged latents cost their place as a damaged sample does."""
        slot = self._driving.slot(position)
        if isinstance(slot, BadSlot):
            return slot
        count = self.config.history + self.config.frames
        try:
            found = self._latents.window(slot.key, slot.first_frame, count, slot.source_frame)
        except ValueError as e:
            return BadSlot(slot.key, position, str(e))
        if found is None:
            return self._pictures.slot(position)
        return EncodedWindow(**vars(slot), target_TCHW=found[0], source_CHW=found[1])
