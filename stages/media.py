"""Media in: untrusted files opened safely, frames upright in RGB, any stretch of a video without the rest."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from schemas.outcomes import Rejection
from stages.colour import i420_square as _i420_square
from stages.colour import to_rgb as _to_rgb
from stages.interlace import progressive

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,h264,ogg,flv"
_SAFE_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
_RAW_STREAMS = {"h264"}  # no container, so no timestamps that mean anything
_MIN_SUFFIX_OF_MP4 = b"ftyp"
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_SEEK_BACK_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # a stream may be joined only at a key frame; few are 16 s apart
_FIELDS_APART = {"mpegts", "mpeg", "h264"}  # here the two fields of an interlaced picture may be packets of their own
_BEGINS_IN_USE = {"mpegts", "mpeg", "ogg"}
_NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
DISORDER_S = 0.5  # time stamps out of order by no more than this belong together


S = TypeVar("S", av.VideoStream, av.AudioStream)


@dataclass(frozen=True)
class SourceFrame:
    """One decoded frame: `index` from 0 in presentation order, `pts` in stream ticks (-1: none), `time_s` from the container's start."""

    index: int
    pts: int
    time_s: float
    raw: av.VideoFrame
    turn: tuple[int, int, int, int] = (1, 0, 0, 1)  # the display matrix

    @cached_property
    def rgb(self) -> np.ndarray:
        """Upright picture, uint8 (H, W, 3)."""
        return _orient(_to_rgb(self.raw), self.turn)

    def i420_square(self, x0: int, y0: int, side: int, size_px: int) -> np.ndarray | None:
        """A part of the upright picture as it is encoded, where there is a short way to that, else None (see colour.i420_square)."""
        return _i420_square(self.raw, x0, y0, side, size_px) if self.turn == (1, 0, 0, 1) else None

    def square(self, x0: int, y0: int, side: int) -> np.ndarray:
        """A part of the upright picture, uint8 (side, side, 3). The picture is not kept with the frame, which may be kept itself."""
        return _orient(_to_rgb(self.raw), self.turn)[y0 : y0 + side, x0 : x0 + side]


@contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a local media file so that it cannot make us read any other file or address.

    Raises:
        Rejection: missing, unreadable, symlink, empty_file, not_media, truncated, no_video.
    """
    path = path.absolute()
    check_readable(path)
    try:
        container = av.open(str(path), options=_SAFE_OPTIONS, metadata_errors="replace")  # old tags are rarely UTF-8
    except av.FFmpegError as e:
        with path.open("rb") as f:
            looks_like_mp4 = f.read(12)[4:8] == _MIN_SUFFIX_OF_MP4
        reason = "truncated" if looks_like_mp4 else "not_media"
        raise Rejection(reason, f"{path}: {e.strerror or e}") from e
    with container:
        if picture_stream(container) is None:
            raise Rejection("no_video", f"{path}: holds no video stream")
        yield container


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The default video stream, else the first; the cover of a song is no video."""
    return default_stream([s for s in container.streams.video if not s.disposition & Disposition.attached_pic])


def default_stream(streams: Sequence[S]) -> S | None:
    """The one that its container calls the default, else the first."""
    return next((s for s in streams if s.disposition & Disposition.default), streams[0] if streams else None)


def check_bounds(path: Path, *, max_pixels: int, max_frames: int) -> None:
    """Refuses what is too large before all of it is decoded: a bomb costs its reading, and at most one frame that ffmpeg probes
    (268 million pixels, by a bound of its own; `max_pixels` would make it forget the size that the refusal tells).

    Headers are not believed about the number of frames, packets are counted; about their size they are, where they say too much.

    Raises:
        Rejection: as `open_video`; frame_too_large, too_many_frames.
    """
    with _open_stream(path) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise Rejection("frame_too_large", f"{path}: frames are {width} x {height}, says its header")
        most = max_frames * (2 if _FIELDS_APART & set(container.format.name.split(",")) else 1)
        packets = 0
        with suppress(av.FFmpegError):  # damage ends the stream early
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packets > most:
                    raise Rejection("too_many_frames", f"{path}: more than {max_frames} frames")


def check_readable(path: Path) -> None:
    """Raises Rejection unless `path` is a plain, non-empty file that we may read."""
    try:
        if path.is_symlink():
            raise Rejection("symlink", f"{path}: is a symbolic link")
        if not path.is_file():
            raise Rejection("missing", f"{path}: not there, or no plain file")
        with path.open("rb") as f:
            if not f.read(1):
                raise Rejection("empty_file", f"{path}: has no bytes")
    except PermissionError as e:
        raise Rejection("unreadable", f"{path}: {e.strerror}") from e
    except OSError as e:
        if e.errno not in _NO_NAMES:
            raise
        raise Rejection("missing", f"{path}: no file can have this name") from e


def has_timestamps(container: av.container.InputContainer) -> bool:
    return not _RAW_STREAMS & set(container.format.name.split(","))


def decode(path: Path, *, start_pts: int | None = None, start_index: int = 0, rough: bool = False) -> Iterator[SourceFrame]:
    """Frames in presentation order, decoded on one thread, one at a time.

    With `start_pts`, which no other frame may have, the first frame yielded is the one with that timestamp, and counts as
    `start_index`. Many containers cannot be sought in exactly (MPEG-TS, AVI, open GOPs, fragmented MP4): where the frame is not
    found by seeking to it, nor by seeking a few seconds earlier, frames are counted from the beginning.
    Damage after the first frame ends the stream early; the caller sees fewer frames. `rough`: blocks of pictures that no other is made
    from are not smoothed, which costs less and serves where only small ones are looked at.

    Raises:
        Rejection: as `open_video`; decode_error when not even one frame can be decoded.
    """
    if start_pts is not None:
        found = False
        for frame in _decode_from(path, start_pts, start_index):
            found = True
            yield frame
        if found:
            return
    with _open_stream(path) as (container, stream):
        if rough:
            # of frames that no other is made from: else errors would add up until the next key frame, which would look like a cut
            stream.codec_context.options = {"skip_loop_filter": "noref"}
        decoded, turn = False, None
        try:
            for index, raw in enumerate(progressive(None, _frames(container, stream))):
                decoded, turn = True, turn or _display_matrix(raw)
                if index >= start_index:
                    yield _source_frame(container, stream, index, raw, turn)
        except av.FFmpegError as e:
            if e.errno == errno.ENOMEM:  # no damage: the frames that follow may be well
                raise MemoryError(f"{path}: no memory to decode it") from e
            if not decoded:
                raise Rejection("decode_error", f"{path}: {e.strerror or e}") from e
        if not decoded:
            raise Rejection("decode_error", f"{path}: holds a video stream without a frame")


def _decode_from(path: Path, pts: int, index: int) -> Iterator[SourceFrame]:
    """Frames from the one with time stamp `pts` on, which is number `index`; none where seeking does not find it."""
    with _open_stream(path) as (container, stream):
        turn = None
        if has_timestamps(container):
            for number, raw in enumerate(_seek(container, stream, pts, is_first=index == 0), index):
                turn = turn or _display_matrix(raw)
                yield _source_frame(container, stream, number, raw, turn)


def _seek(container: av.container.InputContainer, stream: av.VideoStream, pts: int, *, is_first: bool) -> Iterator[av.VideoFrame]:
    """Frames from the one with time stamp `pts` on; none where it is not found, or not the one before it that it needs."""
    ticks_per_s = float(1 / stream.time_base) if stream.time_base else 1.0
    for back_s in _SEEK_BACK_S:
        try:
            container.seek(int(pts - back_s * ticks_per_s), stream=stream, backward=True)
            frames = _frames(container, stream)
            before, first = _find(frames, pts, pts + DISORDER_S * ticks_per_s)
        except av.FFmpegError:
            continue
        if first is not None and (before is not None or is_first or not first.interlaced_frame):
            with suppress(av.FFmpegError):  # damage ends the stream early
                yield from progressive(before, itertools.chain([first], frames))
            return


def _find(frames: Iterator[av.VideoFrame], pts: int, latest: float) -> tuple[av.VideoFrame | None, av.VideoFrame | None]:
    """The frame with time stamp `pts` and the one before it, if that was seen; neither if one later than `latest` comes first: then
    the place sought lies behind it."""
    before = None
    for raw in frames:
        if raw.pts == pts:
            return before, raw
        if raw.pts is not None and raw.pts > latest:
            break
        before = raw
    return None, None


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decoded frames. The alpha of VP8 and VP9 is a stream beside theirs, which ffmpeg's own decoders pass over."""
    own = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name) if stream.metadata.get("alpha_mode") == "1" else None
    if own is None or own not in av.codecs_available:
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(own, "r")
    decoder.thread_count = 1
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with open_video(path) as container:
        stream = picture_stream(container)
        assert stream is not None  # or it would not have been opened
        if stream.codec_context is None:
            raise Rejection("decode_error", f"{path}: nobody here knows the codec of its video stream")
        stream.codec_context.thread_count = 1  # we parallelise over units, not inside one
        yield container, stream


def _begin_s(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """When the container's time begins, in s: with its first stream; but where ffmpeg lets it begin with the first one in use, with that,
    since the sound comes from ffmpeg."""
    if _BEGINS_IN_USE & set(container.format.name.split(",")):
        sound = default_stream(container.streams.audio)
        begins = [float(s.start_time * s.time_base) for s in (stream, sound) if s and s.start_time is not None and s.time_base]
        if begins:
            return min(begins)
    return (container.start_time or 0) / av.time_base


def _source_frame(
    container: av.container.InputContainer, stream: av.VideoStream, index: int, raw: av.VideoFrame, turn: tuple[int, int, int, int]
) -> SourceFrame:
    if has_timestamps(container) and raw.pts is not None:
        return SourceFrame(index, raw.pts, raw.time - _begin_s(container, stream), raw, turn)
    return SourceFrame(index, -1, index / float(stream.average_rate or stream.guessed_rate or 25), raw, turn)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The signs (a, b, c, d) of the display matrix: x' = a x + c y, y' = b x + d y. Identity when there is none.

    Asked of a small copy of one frame a stream: PyAV ties a frame that was asked for its side data into a cycle, and with the picture
    all memory of its decoder stays until the garbage collector comes by.
    """
    with suppress(av.FFmpegError):  # swscale does not know all formats
        frame = frame.reformat(width=16, height=16)
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return (1, 0, 0, 1)
    m = np.sign(np.frombuffer(bytes(data), "<i4").reshape(3, 3)[:2, :2])
    return (int(m[0, 0]), int(m[0, 1]), int(m[1, 0]), int(m[1, 1]))


def _orient(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Applies a display matrix made of quarter turns and mirrors; any other leaves the picture as stored."""
    a, b, c, d = matrix
    if a == d == 0 and b and c:
        image = image.swapaxes(0, 1)  # now x' = y and y' = x
        flip_x, flip_y = c < 0, b < 0
    elif b == c == 0 and a and d:
        flip_x, flip_y = a < 0, d < 0
    else:
        return image
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
