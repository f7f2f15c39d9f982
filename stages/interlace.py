"""Interlaced video: frames whose two fields are of two moments become frames of one."""

from __future__ import annotations

from collections.abc import Iterator

import av

_MIN_INTERLACED_PX = 16  # bwdif wants a few lines and columns in each plane


def progressive(before: av.VideoFrame | None, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """As many frames, none of them interlaced; `before` is the one before the first.

    An interlaced frame becomes what `bwdif` makes of it and its two neighbours, nothing else, so that it looks the same from
    wherever the decoding began; it comes when the frame after it is decoded. Flags are believed: combs in a stream that calls
    itself progressive stay.
    """
    waiting, damage = None, None
    while True:
        try:
            raw = next(frames, None)
        except av.FFmpegError as e:
            raw, damage = None, e
        if waiting is not None:
            yield _deinterlaced(before, waiting, raw)
            before, waiting = waiting, None
        if raw is None:
            break
        if raw.interlaced_frame and min(raw.width, raw.height) >= _MIN_INTERLACED_PX:
            waiting = raw
        else:
            yield raw
            before = raw
    if damage is not None:
        raise damage


def _deinterlaced(before: av.VideoFrame | None, frame: av.VideoFrame, after: av.VideoFrame | None) -> av.VideoFrame:
    """`frame` with lines of one moment, made from both its fields and those around it; its time stamp and tags stay."""
    before, after = (f if f is not None and _shape(f) == _shape(frame) else None for f in (before, after))
    graph = av.filter.Graph()
    graph.threads = 1
    tags = f"colorspace={frame.colorspace}:range={int(frame.color_range)}"
    source = graph.add("buffer", f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:{tags}")
    bwdif, sink = graph.add("bwdif", "mode=send_frame:deint=all"), graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    for part in (before, frame, after):
        if part is not None:
            graph.push(part)
    graph.push(None)  # no more
    if before is not None:
        graph.pull()
    picture = graph.pull()
    picture.pts, picture.time_base = frame.pts, frame.time_base
    return picture


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
