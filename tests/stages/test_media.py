"""Media in and out: nothing hostile is followed, pictures are upright, what is written is the same bytes everywhere."""

from __future__ import annotations

import errno
import itertools
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from faceclips import AUDIO_HZ, click, face_clip, moving_face, noise, photograph, tone, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from schemas.ids import file_digest
from schemas.outcomes import Rejection
from schemas.video import decode_video
from stages.encode import VideoWriter, encode_flac, encode_png
from stages.media import _decode_from, decode, open_video
from stages.sound import extract_sound
from stages.stills import read_image

REPO = Path(__file__).parents[2]


def reason_of(path: Path) -> str:
    """Why decoding `path` is refused."""
    with pytest.raises(Rejection) as e:
        list(decode(path))
    assert str(path) in str(e.value)
    return e.value.reason


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# --- writing


def write_video(path: Path) -> str:
    with VideoWriter(path, 25, 128) as writer:
        for picture in moving_face(frames=30, wh=(128, 128), face_px=60):
            writer.write(picture)
    return file_digest(path)


def test_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    assert write_video(tmp_path / "a.mp4") == write_video(tmp_path / "b.mp4")


def test_bytes_do_not_depend_on_the_cpus_a_process_may_use(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))\n"
        "from pathlib import Path; from test_media import write_video; print(write_video(Path(sys.argv[2])))"
    )
    paths = os.pathsep.join([str(REPO), str(REPO / "tests"), str(REPO / "tests/stages")])
    digests = {write_video(tmp_path / "here.mp4")}
    for cpus in ("1", "64"):
        command = [sys.executable, "-c", code, cpus, str(tmp_path / f"{cpus}.mp4")]
        digests.add(
            subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True).stdout.strip()
        )
    assert len(digests) == 1


def test_what_is_written_is_what_was_meant(tmp_path: Path) -> None:
    """Colours without a bias, and few losses."""
    write_video(tmp_path / "a.mp4")
    want = np.stack(list(moving_face(frames=30, wh=(128, 128), face_px=60)))
    got = decode_video(tmp_path / "a.mp4")
    assert psnr(want, got) > 33
    assert abs(want.astype(float).mean((0, 1, 2)) - got.mean((0, 1, 2))).max() < 1.0


def test_the_video_has_the_settings_of_the_format(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.pts is not None]
        assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 25.0)
        assert [k for k, p in enumerate(packets) if p.is_keyframe][:3] == [0, 12, 24]
        assert [p.pts for p in packets] == [p.dts for p in packets]  # no B-frames
        assert not container.streams.audio
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_an_error_in_mid_writing_closes_the_file(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(tmp_path / "a.mp4", 25, 64) as writer:
        for picture in noise(40, (64, 64)):
            writer.write(picture)
        raise RuntimeError("stop")
    assert open_files() == before


@pytest.mark.parametrize("samples", [1, 4095, 4096, 4097, 16_000, 50_001])
def test_sound_comes_back_sample_for_sample(tmp_path: Path, samples: int) -> None:
    sound = np.random.default_rng(samples).integers(-20_000, 20_000, samples).astype(np.int16)
    encode_flac(sound, tmp_path / "a.flac")
    with av.open(str(tmp_path / "a.flac")) as container:
        assert container.streams.audio[0].rate == AUDIO_HZ
        back = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    np.testing.assert_array_equal(back, sound)


# --- orientation

_MATRICES = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


def quadrants(wh: tuple[int, int]) -> np.ndarray:
    """Red, green, blue and white quarters: no turn or mirror leaves it as it is."""
    w, h = wh[0] // 2, wh[1] // 2
    picture = np.zeros((2 * h, 2 * w, 3), np.uint8)
    picture[:h, :w, 0] = picture[:h, w:, 1] = picture[h:, :w, 2] = 220
    picture[h:, w:] = 220
    return picture


@pytest.mark.parametrize("matrix", _MATRICES)
@pytest.mark.parametrize("scan", ["progressive", "interlaced"])
def test_pictures_are_upright_as_ffmpeg_shows_them(tmp_path: Path, matrix: tuple[int, int, int, int], scan: str) -> None:
    path = write_clip(tmp_path / "a.mp4", [quadrants((96, 64))] * 3)
    if scan == "interlaced":
        options = ["-vf", "setparams=field_mode=tff", "-c:v", "libx264", "-crf", "10", "-flags", "+ilme+ildct", "-x264-params", "tff=1"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), *options, str(tmp_path / "fields.mp4")]
        subprocess.run(command, check=True)
        path = tmp_path / "fields.mp4"
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (v << 16 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), "-frames:v", "1", str(tmp_path / "a.png")]
    subprocess.run(command, check=True)
    shown = cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1]
    first = next(iter(decode(path)))
    assert first.rgb.shape == shown.shape
    assert psnr(shown, first.rgb) > (30 if scan == "progressive" else 25)  # ffmpeg's has the combs of the quarters' edges
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame == (scan == "interlaced")


def test_the_phone_clip_stands_upright(shared: Path) -> None:
    frame = next(iter(decode(shared / "realdata/clips/streamio_sideways_movie.mov")))
    assert frame.rgb.shape == (640, 480, 3)


def test_full_range_is_not_taken_for_limited(shared: Path) -> None:
    """yuvj420p: black must stay black, white white, as ffmpeg converts it."""
    path = shared / "realdata/clips/intel_asl_brother.mkv"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-i",
        str(path),
        "-frames:v",
        "1",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
    ]
    raw = subprocess.run([*command, "-"], check=True, capture_output=True).stdout
    want = np.frombuffer(raw, np.uint8).reshape(480, 640, 3)
    got = next(iter(decode(path))).rgb
    assert np.abs(want.astype(float).mean((0, 1)) - got.mean((0, 1))).max() < 2.5


@pytest.mark.parametrize("wh", [(98, 66), (33, 47)])
def test_any_frame_size_is_decoded(tmp_path: Path, wh: tuple[int, int]) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *wh, "yuv444p"
        frame = av.VideoFrame.from_ndarray(np.full((wh[1], wh[0], 3), 90, np.uint8), format="rgb24").reformat(format="yuv444p")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    picture = next(iter(decode(tmp_path / "a.mkv"))).rgb
    assert abs(picture.shape[0] - wh[1]) <= 1 and abs(picture.shape[1] - wh[0]) <= 1
    assert np.abs(picture.astype(int) - 90).max() <= 2


# --- interlaced pictures

_MOVING = "testsrc2=s=128x96:r=50:d=4,boxblur=3:2,scroll=horizontal=0.03,setsar=1,format=yuv420p"
_FIELDS = f"{_MOVING},tinterlace=interleave_top,setparams=field_mode=tff"


def film(path: Path, picture: str, *options: str) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", picture, "-threads", "1", *options, str(path)]
    subprocess.run(command, check=True)
    return path


_INTERLACED = [
    ("a.mp4", "-c:v libx264 -crf 12 -flags +ilme+ildct -x264-params tff=1:bframes=3:keyint=20"),
    ("open.ts", "-c:v libx264 -crf 12 -flags +ilme+ildct -x264-params tff=1:bframes=3:keyint=20:open-gop=1"),
    ("a.mpg", "-c:v mpeg2video -q:v 3 -flags +ilme+ildct -bf 2 -g 12"),
    ("a.ts", "-c:v mpeg2video -q:v 3 -flags +ilme+ildct -bf 2 -g 12"),
    ("ten.mkv", "-c:v libx264 -crf 12 -pix_fmt yuv420p10le -flags +ilme+ildct -x264-params tff=1:bframes=3:keyint=20"),
]


@pytest.mark.parametrize(("name", "codec"), _INTERLACED, ids=[n for n, _ in _INTERLACED])
def test_interlaced_pictures_lose_their_combs_and_nothing_else(tmp_path: Path, name: str, codec: str) -> None:
    """One picture for each frame, with its time stamp; and much nearer to that moment's picture than the two fields are."""
    path = film(tmp_path / name, _FIELDS, *codec.split())
    with av.open(str(path)) as container:
        stored = [(f.pts, f.interlaced_frame, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert all(interlaced for _, interlaced, _ in stored)
    shown = list(decode(path))
    assert [f.pts for f in shown] == [pts for pts, _, _ in stored] and [f.index for f in shown] == list(range(len(stored)))
    assert abs(shown[-1].time_s - shown[0].time_s - (len(shown) - 1) / 25) < 1e-3
    moments = [f.rgb for f in decode(film(tmp_path / "moments.mkv", _MOVING, "-c:v", "ffv1"))][::2]
    for k in (0, 1, 40, len(stored) - 1):
        assert psnr(moments[k], shown[k].rgb) > psnr(moments[k], stored[k][2]) + 12


@pytest.mark.parametrize(("name", "codec"), _INTERLACED, ids=[n for n, _ in _INTERLACED])
def test_an_interlaced_stretch_looks_as_in_the_whole(tmp_path: Path, name: str, codec: str) -> None:
    path = film(tmp_path / name, _FIELDS, *codec.split())
    whole = list(decode(path))
    for k in (0, 1, 2, 11, 12, 13, 19, 20, 21, 22, 40, 41, 57, 98, 99):
        found = list(itertools.islice(decode(path, start_pts=whole[k].pts, start_index=k), 3))
        for frame, same in zip(found, whole[k : k + 3], strict=True):
            assert (frame.index, frame.pts) == (same.index, same.pts)
            np.testing.assert_array_equal(frame.rgb, same.rgb)
        assert next(_decode_from(path, whole[k].pts, k), None) is not None, "all frames before it were decoded"


def test_a_stream_may_be_interlaced_here_and_there(tmp_path: Path) -> None:
    """A part of each kind, joined; the progressive frames stay as they are, and every start shows what the whole shows."""
    kinds = [
        film(tmp_path / f"{k}.ts", f"{picture},trim=end_frame=20", *["-c:v", "mpeg2video", "-q:v", "3", "-g", "6"], *flags)
        for k, (picture, flags) in enumerate([(_MOVING, []), (_FIELDS, ["-flags", "+ilme+ildct"])] * 2)
    ]
    path = tmp_path / "a.ts"
    command = ["-loglevel", "error", "-i", "concat:" + "|".join(map(str, kinds)), "-c", "copy", str(path)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command], check=True)
    with av.open(str(path)) as container:
        stored = list(container.decode(video=0))
    assert 30 < sum(f.interlaced_frame for f in stored) < 50
    whole = list(decode(path))
    assert len(whole) == len(stored)
    for frame, raw in zip(whole, stored, strict=True):
        assert (frame.raw.to_ndarray() == raw.to_ndarray()).all() != raw.interlaced_frame
    times = [f.pts for f in whole]
    for k in range(15, 45):
        if times.count(times[k]) == 1:
            np.testing.assert_array_equal(next(iter(decode(path, start_pts=times[k], start_index=k))).rgb, whole[k].rgb)


def test_progressive_streams_are_not_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(av.filter, "Graph")
    assert len(list(decode(face_clip(tmp_path / "a.mp4", frames=8)))) == 8


def test_damage_ends_an_interlaced_stream_without_losing_the_frame_before_it(tmp_path: Path) -> None:
    codec = "-c:v libx264 -flags +ilme+ildct -x264-params tff=1:bframes=0 -movflags +faststart"
    path = film(tmp_path / "a.mp4", f"{_FIELDS},trim=end_frame=20", *codec.split())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2))
    left = 0
    with av.open(str(path)) as container, pytest.raises(av.FFmpegError):
        for frame in container.decode(video=0):
            left += frame.interlaced_frame
    assert 3 < left < 20 and len(list(decode(path))) == left


# --- files that are not what they say


@pytest.fixture
def sibling(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "sibling.mp4", noise(5, (64, 64)), sound=tone(0.2))


HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nsibling.mp4\n#EXT-X-ENDLIST\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"


@pytest.mark.parametrize("text", [HLS, "ffconcat version 1.0\nfile sibling.mp4\n", SDP, "file 'sibling.mp4'\n"])
@pytest.mark.parametrize("name", ["evil.mp4", "evil.mpg", "evil.m3u8", "evil.ffconcat", "evil.sdp"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, sibling: Path, text: str, name: str) -> None:
    (tmp_path / name).write_text(text)
    assert reason_of(tmp_path / name) == "not_media"
    with pytest.raises(Rejection):
        extract_sound(tmp_path / name, tmp_path / "out.s16", 1.0, timeout_s=10)
    assert not (tmp_path / "out.s16").exists()


def test_a_protocol_in_a_name_is_a_name(tmp_path: Path, sibling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:sibling.mp4", "subfile,,start,0,end,999,,:sibling.mp4", "http:", "pipe:0"):
        with pytest.raises(Rejection) as e:
            list(decode(Path(name)))
        assert e.value.reason == "missing"


def test_strange_names_are_opened_as_they_are(tmp_path: Path) -> None:
    for name in ("a b'c\".mp4", "ünï\n%03d.mp4", "concat:x.mp4", "-i.mp4", "[x]*?.mp4"):
        path = write_clip(tmp_path / "plain.mp4", noise(3, (64, 64)), sound=tone(0.12)).rename(tmp_path / name)
        assert len(list(decode(path))) == 3
        assert extract_sound(path, tmp_path / "out.s16", 1.0, timeout_s=10)
        (tmp_path / "out.s16").unlink()


def test_symlinks_are_refused(tmp_path: Path, sibling: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(sibling)
    assert reason_of(tmp_path / "link.mp4") == "symlink"
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing")
    assert reason_of(tmp_path / "dangling.mp4") == "symlink"


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.mp4") == "missing"
    os.mkfifo(tmp_path / "fifo.mp4")
    assert reason_of(tmp_path / "fifo.mp4") == "missing"
    assert reason_of(tmp_path) == "missing"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"I am a text, not a clip.\n" * 50, "not_media"),
        (b"\0" * 4096, "not_media"),
        (b"PK\x03\x04" + b"x" * 99, "not_media"),
    ],
)
def test_what_is_no_clip_says_so(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    assert reason_of(tmp_path / "a.mp4") == reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path, sibling: Path) -> None:
    sibling.chmod(0)
    assert reason_of(sibling) == "unreadable"


def test_a_truncated_mp4_says_so(tmp_path: Path) -> None:
    data = face_clip(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    assert reason_of(tmp_path / "a.mp4") == "truncated"


def test_a_clip_that_ends_early_gives_the_frames_it_has(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_face(frames=20), faststart=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 3 < len(list(decode(path))) < 20


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=AUDIO_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(0.064)[None], format="s16", layout="mono")
        frame.sample_rate = AUDIO_HZ
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert reason_of(tmp_path / "a.mp4") == "no_video"


@pytest.fixture(scope="module")
def to_damage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("damage") / "a.mp4", noise(6, (64, 64)), faststart=True)


@given(at=st.integers(0, 5000), flip=st.integers(1, 255))
def test_a_flipped_bit_is_a_rejection_or_frames(to_damage: Path, at: int, flip: int) -> None:
    """Never another exception, whichever byte of the container's head is wrong."""
    data = bytearray(to_damage.read_bytes())
    damaged = to_damage.with_name("damaged.mp4")
    data[at % min(5000, len(data))] ^= flip
    damaged.write_bytes(data)
    try:
        for frame in decode(damaged):
            assert frame.rgb.shape[2] == 3
    except Rejection:
        return


# --- decoding from the middle


def test_a_start_by_timestamp_gives_that_frame_and_its_number(tmp_path: Path) -> None:
    path = face_clip(tmp_path / "a.mp4", frames=30)
    whole = list(decode(path))
    for k in (1, 11, 12, 13, 29):
        first = next(iter(decode(path, start_pts=whole[k].pts, start_index=k)))
        assert (first.index, first.pts) == (k, whole[k].pts)
        np.testing.assert_array_equal(first.rgb, whole[k].rgb)


def made_by_ffmpeg(path: Path, *options: str, seconds: float = 3) -> Path:
    picture = ["-f", "lavfi", "-i", f"testsrc2=s=64x48:r=25:d={seconds}", "-threads", "1"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *picture, *options, str(path)], check=True)
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.ts", "-c:v libx264 -bf 3 -g 30"),
        ("long.ts", "-c:v libx264 -bf 3 -g 250"),
        ("a.flv", "-c:v libx264 -bf 3 -g 30"),
        ("a.mp4", "-c:v libx264 -bf 3 -g 30 -x264-params open-gop=1"),
        ("fragments.mp4", "-c:v libx264 -bf 3 -g 30 -movflags frag_keyframe+empty_moov"),
        ("a.mkv", "-c:v libx264 -bf 3 -g 30 -x264-params open-gop=1"),
        ("a.avi", "-c:v mpeg4 -bf 2 -g 30"),
        ("a.mpg", "-c:v mpeg2video -bf 2 -g 30"),
    ],
)
def test_a_start_is_exact_where_containers_cannot_be_sought_in_exactly(tmp_path: Path, name: str, codec: str) -> None:
    path = made_by_ffmpeg(tmp_path / name, *codec.split(), seconds=16)
    whole = list(decode(path))
    for k in (1, 27, 28, 29, 30, 31, 56, 57, 58, 59, 60, 61, 74, 199, 301, 399):
        first = next(iter(decode(path, start_pts=whole[k].pts, start_index=k)))
        assert (first.index, first.pts) == (k, whole[k].pts)
        np.testing.assert_array_equal(first.rgb, whole[k].rgb)
        assert next(_decode_from(path, whole[k].pts, k), None) is not None, "all frames before it were decoded"


def test_a_start_without_timestamps_counts_frames(tmp_path: Path) -> None:
    """Files whose time stamps repeat cannot be sought in."""
    path = face_clip(tmp_path / "a.mp4", frames=20, sound=False)
    assert [f.index for f in decode(path, start_index=7)] == list(range(7, 20))


# --- which stream

_TWO_OF_EACH = [
    *["-f", "lavfi", "-i", "color=red:s=64x48:d=1", "-f", "lavfi", "-i", "color=blue:s=96x48:d=1"],
    *["-f", "lavfi", "-i", "sine=300:d=1", "-f", "lavfi", "-i", "sine=900:d=1"],
]


def two_of_each(path: Path, *options: str) -> Path:
    """Two pictures, red and blue, and two sounds, of 300 and 900 Hz, with a subtitle between them."""
    (path.parent / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    maps = ["-i", str(path.parent / "a.srt"), *(f for k in (4, 2, 0, 1, 3) for f in ("-map", str(k)))]
    codec = ["-c:v", "ffv1", "-c:a", "pcm_s16le", "-c:s", "srt"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *_TWO_OF_EACH, *maps, *codec, *options, str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("picture", ["first", "second", "none"])
@pytest.mark.parametrize("sound", ["first", "second", "none"])
def test_the_default_streams_are_taken_else_the_first(tmp_path: Path, picture: str, sound: str) -> None:
    marks = {"first": ("default", "0"), "second": ("0", "default"), "none": ("0", "0")}
    options = [
        o
        for kind, which in (("v", picture), ("a", sound))
        for k, mark in enumerate(marks[which])
        for o in (f"-disposition:{kind}:{k}", mark)
    ]
    path = two_of_each(tmp_path / "a.mkv", *options, "-default_mode", "passthrough")
    red, _, blue = next(iter(decode(path))).rgb[20, 20]
    assert (red > 200, blue > 200) == (picture != "second", picture == "second")
    assert extract_sound(path, tmp_path / "a.s16", 1.0, timeout_s=30)
    heard = np.frombuffer((tmp_path / "a.s16").read_bytes(), "<i2").astype(float)
    assert np.abs(np.fft.rfft(heard)).argmax() * AUDIO_HZ / len(heard) == pytest.approx(900 if sound == "second" else 300, abs=5)


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    codecs = "-filter:v:0 trim=end_frame=1 -c:v:0 mjpeg -disposition:v:0 attached_pic -c:v:1 libx264 -sn -c:a aac"
    path = two_of_each(tmp_path / "a.mp4", *codecs.split())
    frames = list(decode(path))
    assert len(frames) == 25 and frames[0].rgb[20, 20, 2] > 200
    assert extract_sound(path, tmp_path / "a.s16", 1.0, timeout_s=30)
    song = ["-loglevel", "error", "-i", str(path), "-map", "0:a:0", "-map", "0:v:1", "-c", "copy", "-disposition:v", "attached_pic"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *song, str(tmp_path / "song.mp4")], check=True)
    with av.open(str(tmp_path / "song.mp4")) as container:
        assert len(container.streams.video) == 1
    assert reason_of(tmp_path / "song.mp4") == "no_video"


@pytest.mark.parametrize(("layout", "codec"), [("stereo", "pcm_f32le"), ("5.1", "ac3"), ("5.1", "pcm_f32le"), ("7.1", "flac")])
def test_loud_channels_become_one_without_clipping(tmp_path: Path, layout: str, codec: str) -> None:
    """All channels in phase and near the top: their sum would be several times too loud."""
    channels = {"stereo": 2, "5.1": 6, "7.1": 8}[layout]
    waves = "|".join(["0.95*sin(2*PI*440*t)"] * channels)
    path = made_by_ffmpeg(tmp_path / "a.mkv", "-f", "lavfi", "-i", f"aevalsrc={waves}:c={layout}:s=48000:d=1", "-c:a", codec, seconds=1)
    assert extract_sound(path, tmp_path / "a.s16", 1.0, timeout_s=30)
    heard = np.frombuffer((tmp_path / "a.s16").read_bytes(), "<i2")[1600:-1600].astype(float)
    assert 0.85 * 32768 < np.abs(heard).max() < 32767
    assert np.abs(heard).max() / np.sqrt(np.mean(heard**2)) == pytest.approx(2**0.5, rel=0.01)  # still a sine


# --- sound


@pytest.mark.parametrize("late_s", [0.0, 0.4])
def test_late_sound_stays_in_its_place(tmp_path: Path, late_s: float) -> None:
    """A click 0.5 s after its track's begin; the track begins `late_s` after the picture."""
    path = write_clip(tmp_path / "a.mp4", noise(40, (64, 64)), sound=click(0.5, 1.0), sound_from_s=late_s)
    assert extract_sound(path, tmp_path / "a.s16", 1.6, timeout_s=30)
    sound = np.abs(np.frombuffer((tmp_path / "a.s16").read_bytes(), "<i2").astype(int))
    assert np.flatnonzero(sound > 5000)[0] / AUDIO_HZ == pytest.approx(0.5 + late_s, abs=0.03)


@pytest.mark.parametrize(
    "name_and_codec", ["a.ts", "a.mpg", "a.flv", "a.mkv", "a.ogv -c:v libtheora -c:a libvorbis"], ids=lambda n: n.split()[0]
)
def test_late_sound_stays_in_its_place_in_every_container(tmp_path: Path, name_and_codec: str) -> None:
    name, *codec = name_and_codec.split()
    late_click = ["-itsoffset", "0.6", "-f", "lavfi", "-i", "aevalsrc=0.9*sin(5000*t)*between(t\\,0.3\\,0.32):d=2:s=44100"]
    path = made_by_ffmpeg(tmp_path / name, *late_click, *codec)
    assert extract_sound(path, tmp_path / "a.s16", 3.0, timeout_s=30)
    sound = np.abs(np.frombuffer((tmp_path / "a.s16").read_bytes(), "<i2").astype(int))
    assert np.flatnonzero(sound > 5000)[0] / AUDIO_HZ == pytest.approx(0.9, abs=0.03)


def test_no_sound_is_no_file(tmp_path: Path) -> None:
    assert not extract_sound(face_clip(tmp_path / "a.mp4", sound=False), tmp_path / "a.s16", 1.0, timeout_s=30)
    assert not (tmp_path / "a.s16").exists()


@pytest.mark.parametrize(("ending", "says"), [("kill -9 $$", "by signal 9"), ("exit 255", "by a signal")])
def test_a_killed_ffmpeg_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, says: str) -> None:
    """What it wrote before it was killed is not taken for the sound."""
    path, out, killed = face_clip(tmp_path / "a.mp4"), tmp_path / "a.s16", tmp_path / "ffmpeg"
    killed.write_text(f"#!/bin/sh\nhead -c 999 /dev/zero\n{ending}\n")
    killed.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(killed))
    with pytest.raises(OSError, match=rf"a\.mp4: ffmpeg was ended {says}"):
        extract_sound(path, out, 1.0, timeout_s=30)
    assert not out.exists()


def test_a_full_disk_is_no_silence(tmp_path: Path) -> None:
    out = tmp_path / "a.s16"
    out.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as e:
        extract_sound(face_clip(tmp_path / "a.mp4"), out, 1.0, timeout_s=30)
    assert e.value.errno == errno.ENOSPC
    assert not out.is_symlink()


def test_sound_damaged_throughout_is_no_sound(tmp_path: Path) -> None:
    path, damaged = face_clip(tmp_path / "a.mp4"), tmp_path / "damaged.mp4"
    command = ["-loglevel", "error", "-i", str(path), "-c", "copy", "-bsf:a", "noise=amount=1", str(damaged)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command], check=True)
    assert not extract_sound(damaged, tmp_path / "a.s16", 1.0, timeout_s=30)
    assert not (tmp_path / "a.s16").exists()
    misleading = damaged.rename(tmp_path / "Cannot allocate memory.mp4")
    assert not extract_sound(misleading, tmp_path / "a.s16", 1.0, timeout_s=30)


# --- stills


def test_a_still_is_upright_by_its_exif(tmp_path: Path) -> None:
    image = Image.fromarray(quadrants((40, 20)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), quadrants((40, 20)))


def test_transparency_becomes_grey(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 128).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGB"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photograph("astronaut")).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    got = read_image(path)
    assert got.shape == (512, 512, 3) and got.dtype == np.uint8
    assert abs(got.mean() - photograph("astronaut").mean()) < 12


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png")
    assert got.min() == 0 and got.max() == 255 and abs(got.mean() - 127.5) < 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_refused_unread(tmp_path: Path) -> None:
    data = bytearray(encode_png(np.zeros((8, 8, 3), np.uint8)))
    data[16:24] = struct.pack(">II", 10_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(Rejection) as e:
        read_image(tmp_path / "a.png")
    assert e.value.reason == "frame_too_large"


@settings(max_examples=300)
@given(at=st.integers(0, 100_000), flip=st.integers(1, 255), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_damaged_still_is_a_rejection_or_a_picture(to_damage: Path, at: int, flip: int, kind: str) -> None:
    path = to_damage.with_name(f"still.{kind.lower()}")
    Image.fromarray(photograph("astronaut")[100:164, 200:264]).save(path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(data)
    try:
        assert read_image(path).shape[2] == 3
    except Rejection as e:
        assert e.reason in ("not_media", "frame_too_large")


def test_open_video_closes_behind_itself(tmp_path: Path, sibling: Path) -> None:
    before = open_files()
    for _ in range(5):
        with open_video(sibling):
            pass
    assert open_files() == before
