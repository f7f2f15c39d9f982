"""Hostile files: playlists, bombs, lies and strange names, each made here, and a trap that tells whether one of them reached out."""

from __future__ import annotations

import ctypes
import http.server
import io
import os
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from PIL import Image

ACCEPTED = ""  # stands for "no reason": the file may pass
_IN_OPEN, _IN_NONBLOCK = 0x20, 0x800


class Trap:
    """A folder with canary files of all the kinds that a playlist may name, and a server on loopback: nobody may touch either.

    A context manager. The kernel tells (inotify, so Linux only) of every opening, by whatever process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._requests = folder, list[str]()

    def __enter__(self) -> Trap:
        self.folder.mkdir(parents=True)
        clip = write_clip(self.folder / "canary.mp4")
        for name in ("canary.ts", "canary.m4s", "canary.key"):
            (self.folder / name).write_bytes(clip.read_bytes())
        trap = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap._requests.append(self.path)
                self.send_error(404)

            def log_message(self, *what: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        libc = ctypes.CDLL(None, use_errno=True)
        self._watch: int = libc.inotify_init1(_IN_NONBLOCK)
        if self._watch < 0 or libc.inotify_add_watch(self._watch, os.fsencode(self.folder), _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(self.folder))
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._watch)
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def sprung(self) -> list[str]:
        """Files opened and addresses asked for since the last call."""
        events, found = b"", []
        try:
            while more := os.read(self._watch, 1 << 16):
                events += more
        except BlockingIOError:
            pass
        while events:  # struct inotify_event: watch, mask, cookie, length, name
            length = struct.unpack_from("iIII", events)[3]
            name = events[16 : 16 + length].rstrip(b"\0").decode()
            if name:  # the folder's own opening, by those who list it, has none
                found.append(str(self.folder / name))
            events = events[16 + length :]
        found += [self.url + path for path in self._requests]
        self._requests.clear()
        return sorted(set(found))


def write_clip(
    path: Path,
    sizes: Iterable[tuple[int, int]] = ((64, 64),) * 8,
    times_ms: Iterable[int] | None = None,
    *,
    container: str | None = None,
    codec: str = "mpeg4",
) -> Path:
    """Frames of the given sizes, each a key frame of its own, as if several streams had been joined."""
    sizes = list(sizes)
    times = list(times_ms) if times_ms is not None else [40 * k for k in range(len(sizes))]
    with av.open(os.fspath(path), "w", format=container, options={"avoid_negative_ts": "disabled"}) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = sizes[0]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for k, (size, time_ms) in enumerate(zip(sizes, times, strict=True)):
            encoder = stream.codec_context
            if size != sizes[0]:
                encoder = av.CodecContext.create(codec, "w")
                encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, stream.pix_fmt, Fraction(1, 25)
            picture = np.random.default_rng(k).integers(0, 255, (size[1] // 4 or 1, size[0] // 4 or 1, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.asarray(Image.fromarray(picture).resize(size)), format="rgb24")
            frame.pts, frame.time_base, frame.pict_type = k, Fraction(1, 25), 1
            for packet in [*encoder.encode(frame), *(encoder.encode(None) if encoder is not stream.codec_context else ())]:
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packet.pts = packet.dts = time_ms
                out.mux(packet)
    return path


# --- containers written by hand, so that they can lie


def avi(codec: bytes, size: tuple[int, int], frames: Iterable[bytes], claimed: int | None = None) -> bytes:
    """An AVI whose headers say whatever they are told."""
    frames = list(frames)
    n = len(frames) if claimed is None else claimed
    main = struct.pack("<14I", 40_000, 0, 0, 0, n, 0, 1, 1 << 20, *size, 0, 0, 0, 0)
    header = b"vids" + codec + struct.pack("<10I4H", 0, 0, 0, 1, 25, 0, n, 1 << 20, 0, 0, 0, 0, *(s & 0xFFFF for s in size))
    form = struct.pack("<IiiHH4s5I", 40, *size, 1, 24, codec, 0, 0, 0, 0, 0)
    stream = _list(b"strl", _chunk(b"strh", header) + _chunk(b"strf", form))
    movie = _list(b"movi", b"".join(_chunk(b"00dc", f) for f in frames))
    return _list(b"AVI ", _list(b"hdrl", _chunk(b"avih", main) + stream) + movie, b"RIFF")


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _list(name: bytes, data: bytes, kind: bytes = b"LIST") -> bytes:
    return _chunk(kind, name + data)


def _box(name: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I", 8 + len(data)) + name + data


def _full(name: bytes, *parts: bytes) -> bytes:
    return _box(name, b"\0\0\0\0", *parts)


def mp4(codec: bytes, size: tuple[int, int], frames: int, frame: bytes, *, delta: int = 1, claimed_size: int | None = None) -> bytes:
    """An mp4 of `frames` equal frames in one chunk: a table of a few bytes stands for all of them."""
    head = _box(b"ftyp", b"isom\0\0\2\0isom")
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    duration = min(frames * delta, 0xFFFFFFFF)
    entry = _box(
        codec,
        bytes(6),
        struct.pack(">H", 1),
        bytes(16),
        struct.pack(">HHIIIH", *size, 72 << 16, 72 << 16, 0, 1),
        bytes(32),
        b"\0\x28\xff\xff",
    )
    length = claimed_size if claimed_size is not None else len(frame)

    def moov(offset: int) -> bytes:
        tables = [
            _full(b"stsd", struct.pack(">I", 1), entry),
            _full(b"stts", struct.pack(">3I", 1, frames, delta)),
            _full(b"stsc", struct.pack(">4I", 1, 1, frames, 1)),
            _full(b"stsz", struct.pack(">2I", length, frames)),
            _full(b"stco", struct.pack(">2I", 1, offset)),
        ]
        data_reference = _box(b"dinf", _full(b"dref", struct.pack(">I", 1), _box(b"url ", b"\0\0\0\1")))
        media = _box(b"minf", _box(b"vmhd", bytes(3), b"\1", bytes(8)), data_reference, _box(b"stbl", *tables))
        mdhd = _full(b"mdhd", struct.pack(">4IHH", 0, 0, 25, duration, 0x55C4, 0))
        hdlr = _full(b"hdlr", bytes(4), b"vide", bytes(13))
        shown = struct.pack(">II", size[0] << 16, size[1] << 16)
        tkhd = _box(b"tkhd", b"\0\0\0\3", struct.pack(">5I", 0, 0, 1, 0, duration), bytes(16), identity, shown)
        mvhd = _full(b"mvhd", struct.pack(">4IIH", 0, 0, 25, duration, 1 << 16, 256), bytes(10), identity, bytes(24), struct.pack(">I", 2))
        return _box(b"moov", mvhd, _box(b"trak", tkhd, _box(b"mdia", mdhd, hdlr, media)))

    return head + moov(len(head) + len(moov(0)) + 8) + _box(b"mdat", frame * (1 if claimed_size is not None else frames))


def mkv_laced(frames: int) -> bytes:
    """A Matroska file of `frames` pictures of one pixel, 250 in a block: little more than a byte each."""

    def element(name: str, data: bytes) -> bytes:
        return bytes.fromhex(name) + struct.pack(">Q", len(data) | 1 << 56) + data

    head = element("1a45dfa3", element("4282", b"matroska") + element("4287", b"\4") + element("4285", b"\2"))
    video = element("e0", element("b0", b"\1") + element("ba", b"\1") + element("2eb524", b"Y800"))
    track = element("ae", element("d7", b"\1") + element("73c5", b"\1") + element("83", b"\1") + element("86", b"V_UNCOMPRESSED") + video)
    blocks, per_block = [], 250
    for k in range(-(-frames // per_block)):
        # track 1, its time within the cluster, flags: key frame and lacing of equal sizes, number of frames less one
        block = element("a3", b"\x81" + struct.pack(">h", 0) + b"\x84" + bytes([per_block - 1]) + bytes(per_block))
        blocks.append(element("1f43b675", element("e7", struct.pack(">I", 1000 * k)) + block))
    info = element("1549a966", element("2ad7b1", struct.pack(">I", 1_000_000)))
    return head + element("18538067", info + element("1654ae6b", track) + b"".join(blocks))


def png(size: tuple[int, int], *, colour: int = 2, data: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros_deflated(megabytes: int) -> bytes:
    """A zlib stream that grows a thousandfold; made quickly, because it repeats itself."""
    compress = zlib.compressobj(9)
    first = compress.compress(bytes(1 << 20)) + compress.flush(zlib.Z_FULL_FLUSH)
    again = zlib.compressobj(9, wbits=-15)
    more = again.compress(bytes(1 << 20)) + again.flush(zlib.Z_FULL_FLUSH)
    return first + more * (megabytes - 1) + b"\3\0" + struct.pack(">I", 0)


def jpeg(size: tuple[int, int] | None = None) -> bytes:
    """A picture of 64 x 64, whose header may claim another size."""
    f = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(f, "JPEG")
    data = bytearray(f.getvalue())
    if size:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", size[1], size[0])
    return bytes(data)


# --- the files


REFUSED = frozenset({"not_media", "truncated", "decode_error", "no_video"})
TOO_LARGE = frozenset({"frame_too_large"})
TOO_MANY = frozenset({"too_many_frames"})


def make_hostile(folder: Path, trap: Trap) -> dict[Path, frozenset[str]]:
    """Writes the files; each with the reasons for which ingest may refuse it, `ACCEPTED` where it may pass."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **_make_pointers(folder, trap),
        **_make_bombs(folder),
        **_make_liars(folder),
        **_make_strange_clocks(folder),
        **_make_strange_names(folder),
        **_make_no_files(folder),
    }


def _make_pointers(folder: Path, trap: Trap) -> dict[Path, frozenset[str]]:
    """Files that name other files and addresses; each by an absolute path, by one relative to it, and by an address."""
    places = {"beside": os.path.relpath(trap.folder, folder), "absolute": str(trap.folder), "address": trap.url}
    made = {}
    for where, place in places.items():
        hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
        texts = {
            "playlist": f"{hls}#EXTINF:1.0,\n{place}/canary.ts\n#EXT-X-ENDLIST\n",
            "master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{place}/canary.m3u8\n",
            "key": f'{hls}#EXT-X-KEY:METHOD=AES-128,URI="{place}/canary.key"\n#EXTINF:1,\n{place}/canary.ts\n',
            "map": f'{hls}#EXT-X-MAP:URI="{place}/canary.mp4"\n#EXTINF:1,\n{place}/canary.m4s\n#EXT-X-ENDLIST\n',
            "concat": f"ffconcat version 1.0\nfile '{place}/canary.mp4'\n",
            "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
            f"<Period><BaseURL>{place}/canary.mp4</BaseURL><AdaptationSet mimeType='video/mp4'><Representation id='1' bandwidth='1'/>"
            "</AdaptationSet></Period></MPD>\n",
            "stream": f"[Reference]\nRef1={place}/canary.mp4\n",
        }
        for kind, text in texts.items():
            for suffix in ("mp4", "ts", "m3u8"):
                path = folder / f"{kind} {where}.{suffix}"
                path.write_text(text)
                made[path] = REFUSED
    port = trap.url.rsplit(":", 1)[1]
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    for suffix in ("sdp", "mp4"):
        (folder / f"session.{suffix}").write_text(sdp)
        made[folder / f"session.{suffix}"] = REFUSED
    # an mp4 whose samples lie, so it says, in another file
    data = mp4(b"raw ", (64, 64), 8, bytes(64 * 64 * 3))
    at = data.index(b"url \0\0\0\1")
    reference = f"file://{trap.folder}/canary.mp4".encode() + b"\0"
    for name, flags in (("samples elsewhere.mp4", b"\0\0\0\0"), ("samples elsewhere too.mov", b"\0\0\0\1")):
        (folder / name).write_bytes(_grown(data, at, b"url " + flags, reference))
        made[folder / name] = REFUSED | {ACCEPTED}
    return made


def _grown(data: bytes, at: int, head: bytes, more: bytes) -> bytes:
    """`data` with `more` put into the box whose name stands at `at`; that box and all around it grow."""
    out = bytearray(data[:at] + head + more + data[at + len(head) :])
    position = 0
    while position + 8 < at:
        length, name = struct.unpack_from(">I4s", out, position)
        if position + length > at - 4 and name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
            struct.pack_into(">I", out, position, length + len(more))
            position += 16 if name == b"dref" else 8
        else:
            position += length
    struct.pack_into(">I", out, at - 4, 12 + len(more))
    return bytes(out)


def _make_bombs(folder: Path) -> dict[Path, frozenset[str]]:
    big, huge = (16_000, 16_000), (30_000, 30_000)
    files: dict[str, tuple[bytes, frozenset[str]]] = {}
    for name, size in (("16000", big), ("30000", huge)):
        # ffmpeg itself refuses the second size, and then tells none
        large = TOO_LARGE if size == big else TOO_LARGE | REFUSED
        files |= {
            f"png {name}.avi": (avi(b"MPNG", size, [png(size, data=zeros_deflated(size[0] * size[1] * 3 >> 20))]), large),
            f"png {name} in small.avi": (avi(b"MPNG", (64, 64), [png(size, data=zeros_deflated(8))]), TOO_LARGE | REFUSED),
            f"jpeg {name}.avi": (avi(b"MJPG", size, [jpeg(size)]), large),
            f"jpeg {name} in small.avi": (avi(b"MJPG", (64, 64), [jpeg(size)]), TOO_LARGE | REFUSED),
            f"raw {name}.avi": (avi(b"DIB ", size, [bytes(4096)] * 3), TOO_LARGE | REFUSED),
            f"raw {name}.mp4": (mp4(b"raw ", size, 3, bytes(64)), TOO_LARGE | REFUSED),
            f"jpeg {name}.mp4": (mp4(b"jpeg", size, 2, jpeg(size)), large),
        }
    files |= {
        "late bomb.avi": (avi(b"MJPG", (64, 64), [*[jpeg()] * 5, jpeg(big)]), TOO_LARGE | {ACCEPTED, "frame_size_changes"}),
        "a million.mp4": (mp4(b"raw ", (1, 1), 1_000_000, b"\0"), TOO_MANY),
        "a million.mkv": (mkv_laced(1_000_000), TOO_MANY),
        "a million empty.avi": (avi(b"MJPG", (64, 64), [jpeg(), *[b""] * 130_000]), REFUSED | TOO_MANY | {ACCEPTED}),
        "column.avi": (avi(b"MJPG", (2, 60_000), [jpeg((2, 60_000))] * 8), REFUSED | {ACCEPTED}),
        "row.avi": (avi(b"MJPG", (60_000, 2), [jpeg((60_000, 2))] * 8), REFUSED | {ACCEPTED}),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {folder / name: reasons for name, (_, reasons) in files.items()}


def _make_liars(folder: Path) -> dict[Path, frozenset[str]]:
    """Headers that claim another duration, number of frames or size than there is."""
    plain = write_clip(folder / "plain.mp4").read_bytes()
    longer = bytearray(plain)
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = plain.index(box) + offset
        longer[at : at + 4] = b"\x7f\xff\xff\xff"
    wide = bytearray(plain)
    at = plain.index(b"mp4v", plain.index(b"stsd")) + 28
    wide[at : at + 4] = struct.pack(">HH", 640, 48)
    still = [jpeg()] * 6
    files = {
        "long.mp4": (bytes(longer), frozenset({ACCEPTED})),
        "wide.mp4": (bytes(wide), frozenset({ACCEPTED})),
        "many.avi": (avi(b"MJPG", (64, 64), still, claimed=1_000_000_000), frozenset({ACCEPTED})),
        "few.avi": (avi(b"MJPG", (64, 64), still, claimed=0), frozenset({ACCEPTED})),
        "large.avi": (avi(b"MJPG", (1920, 1080), still), frozenset({ACCEPTED}) | REFUSED),  # half the height counts as a field
        "table of four billion.mp4": (mp4(b"raw ", (64, 64), 0xFFFFFFF0, bytes(12_288), claimed_size=1), REFUSED | TOO_MANY | {ACCEPTED}),
        "slow.mp4": (mp4(b"raw ", (64, 64), 5, bytes(12_288), delta=0x7FFFFFFF), frozenset({ACCEPTED})),
        "one pixel.mp4": (mp4(b"raw ", (1, 1), 40, b"\0"), frozenset({ACCEPTED}) | REFUSED),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    covered = write_clip(folder / "attachments.mkv")
    _attach(covered)
    (folder / "cover.bin").write_bytes(jpeg())
    as_cover = "-map 0 -map 1 -c:v copy -disposition:v attached_pic"
    _ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-i", folder / "cover.bin", *as_cover.split(), folder / "song.mp4")
    (folder / "cover.bin").unlink()
    expected = {folder / name: reasons for name, (_, reasons) in files.items()}
    return expected | {covered: frozenset({ACCEPTED}), folder / "song.mp4": frozenset({"no_video"})}


def _ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", *map(str, arguments)], check=True)


def _attach(path: Path) -> None:
    """Lays a large picture and a program into a Matroska file."""
    extras = {"cover.jpg": (jpeg((9_000, 9_000)), "image/jpeg"), "x.sh": (b"#!/bin/sh\nexit 1\n", "text/x-sh")}
    options: list[str] = []
    for k, (name, (data, kind)) in enumerate(extras.items()):
        path.with_name(name).write_bytes(data)
        options += ["-attach", str(path.with_name(name))]
        options += [o for about in (f"mimetype={kind}", f"filename=../{name}") for o in (f"-metadata:s:t:{k}", about)]
    plain = path.rename(path.with_name("unattached.bin"))
    _ffmpeg("-i", plain, "-c", "copy", *options, path)
    for used in (plain, *map(path.with_name, extras)):
        used.unlink()


def _make_strange_clocks(folder: Path) -> dict[Path, frozenset[str]]:
    changing = [(64, 64)] * 5 + [(96, 48)] * 5
    back = [*range(0, 400, 40), *range(-4000, -3600, 40)]
    return {
        write_clip(folder / "negative.mkv", times_ms=range(-320, 0, 40)): frozenset({ACCEPTED}),
        write_clip(folder / "before all time.ts", times_ms=range(-90_000, -89_680, 40)): frozenset({ACCEPTED}),
        _joined(folder, "backwards.ts", back): frozenset({ACCEPTED}),
        write_clip(folder / "far.mkv", times_ms=[0, 40, 80, *range(2**45, 2**45 + 200, 40)]): frozenset({ACCEPTED}),
        write_clip(folder / "changing.avi", changing, codec="mjpeg"): frozenset({"frame_size_changes"}),
        write_clip(folder / "changing.mkv", changing, codec="mjpeg"): frozenset({"frame_size_changes"}),
    }


def _joined(folder: Path, name: str, times_ms: list[int]) -> Path:
    """Two streams end to end; the second one's clock stands before the first one's."""
    parts = []
    for half in (times_ms[: len(times_ms) // 2], times_ms[len(times_ms) // 2 :]):
        part = write_clip(folder / "part.bin", ((64, 64),) * len(half), [t + 10_000 for t in half], container="mpegts")
        parts.append(part.read_bytes())
        part.unlink()
    (folder / name).write_bytes(b"".join(parts))
    return folder / name


STRANGE_NAMES = (
    b"spaces  and\ttabs.mp4",
    b"'single' \"double\" `back`.mp4",
    b"new\nline.mp4",
    "größe 顔 🎬 e\u0301 \u202egnp.mp4".encode(),
    b"-i.mp4",
    b"--help.mp4",
    b"$(touch pwned);&|<>*?[x]{a,b}%03d!#~.mp4",
    b"http:localhost.mp4",
    b"file:x.mp4",
    b"backslash\\.mp4",
    b"\x01\x1b[31mred\x7f.mp4",
    b"x" * 251 + b".mp4",
    b"trailing backslash.mp4\\",
)
NOT_UTF8 = b"latin1 \xe4\xff.mp4"


def _make_strange_names(folder: Path) -> dict[Path, frozenset[str]]:
    """Below a folder of its own. A name that is no UTF-8 stands in no table: it is listed under an escaped one, and ends as missing."""
    (folder / "names").mkdir()
    made = {}
    for k, name in enumerate((*STRANGE_NAMES, NOT_UTF8)):
        # each another content, or the run would call them duplicates
        plain = write_clip(folder / "names" / "plain.mp4", ((64 + 2 * k, 64),) * 8)
        path = folder / "names" / os.fsdecode(name)
        made[plain.rename(path)] = frozenset({ACCEPTED})
    return made


def _make_no_files(folder: Path) -> dict[Path, frozenset[str]]:
    """Streams without an end and things that are no files."""
    os.mkfifo(folder / "endless.mp4")
    (folder / "zeros.mp4").symlink_to("/dev/zero")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "sparse.mp4").touch()
    os.truncate(folder / "sparse.mp4", 64 << 20)
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # a socket's path must be short
    try:
        listener.bind("socket.mp4")
    finally:
        os.chdir(here)
        listener.close()
    return {
        folder / "endless.mp4": frozenset({"missing"}),
        folder / "zeros.mp4": frozenset({"symlink"}),
        folder / "loop.mp4": frozenset({"symlink"}),
        folder / "socket.mp4": frozenset({"missing"}),
        folder / "sparse.mp4": frozenset({"not_media"}),
    }


def make_hostile_images(folder: Path) -> dict[Path, frozenset[str]]:
    """Stills; each with the reasons for which reading may refuse it, `ACCEPTED` where it may pass."""
    folder.mkdir(parents=True, exist_ok=True)
    size, not_media = (30_000, 30_000), frozenset({"not_media"})
    text = zlib.compress(bytes(64 << 20), 9)
    comment = struct.pack(">I", len(text) + 5) + b"zTXtkey\0\0" + text + struct.pack(">I", zlib.crc32(b"zTXtkey\0\0" + text))
    small = png((8, 8), data=zlib.compress(bytes(8 * 25)))
    # EXIF: one entry that claims four billion values, and a directory that points to itself
    entries = struct.pack("<HHII", 0x0112, 3, 0xFFFFFFFF, 8) + struct.pack("<HHII", 0x8769, 4, 1, 8)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + struct.pack("<I", 8)
    whole = jpeg()
    files = {
        "giant.png": (png(size, data=zeros_deflated(size[0] * size[1] * 3 >> 20)), TOO_LARGE),
        "giant grey.png": (png(size, colour=0, data=zlib.compress(bytes(1 << 20))), TOO_LARGE),
        "giant.jpg": (jpeg(size), TOO_LARGE),
        "liar.png": (png((4000, 4000), data=zlib.compress(bytes(100))), not_media),
        "truncated.jpg": (whole[: len(whole) // 2], not_media),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', not_media),
        "animation.png": (b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;", not_media),
        "text bomb.png": (small[:33] + comment + small[33:], not_media | {ACCEPTED}),
        "exif bomb.jpg": (whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:], not_media | {ACCEPTED}),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {folder / name: reasons for name, (_, reasons) in files.items()}
