"""Sound: a source's default audio stream as 16 kHz mono, where its picture's time begins."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path
from threading import Event, Thread, Timer

import ffmpeg
import imageio_ffmpeg

from stages.media import FORMATS, default_stream, open_video, picture_stream

SAMPLE_RATE_HZ = 16_000
_MACHINE_ERRORS = (errno.EIO, errno.EACCES, errno.ENOMEM, errno.ENFILE, errno.EMFILE)
_TOLD_TO_STOP = 255  # ffmpeg's exit status after SIGINT or SIGTERM, which it takes for a user's wish


def extract_sound(path: Path, out: Path, duration_s: float, *, timeout_s: float, rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1) -> bool:
    """Writes the default audio stream, else the first, as raw int16, by default mono at 16 kHz; False without one. Memory stays bounded.

    Sample n belongs to n / rate_hz s after the container's start, where video time starts too: late sound and gaps are filled
    with silence. Sound is whole or not there: a stream that ffmpeg gives up on (no decoder, more than two thirds of it damaged)
    counts as no sound, single damaged packets as silence. Where the machine failed, not the stream, this raises.

    Raises:
        subprocess.TimeoutExpired: ffmpeg took longer than `timeout_s`.
        OSError: `out` could not be written (disk full), ffmpeg was killed, or it could not read (out of memory).
    """
    with open_video(path) as container:
        audio, video = default_stream(container.streams.audio), picture_stream(container)
        if audio is None or video is None:
            return False
        sound_at, picture_at = str(audio.index), str(video.index)
    source = ffmpeg.input(f"file:{path.absolute()}", protocol_whitelist="file,pipe", format_whitelist=FORMATS)
    resampled = source[sound_at].filter("aresample", rate_hz, **{"async": 1, "first_pts": 0})
    sound = resampled.output("-", format="s16le", ac=channels, ar=rate_hz, acodec="pcm_s16le", t=duration_s, threads=1)
    # MPEG-TS, MPEG-PS and Ogg begin where the first stream in use does (as in media.py): the picture is in use, so late sound stays late
    picture = source[picture_at].output("-", format="null", vcodec="copy", t=duration_s)
    streams = ffmpeg.merge_outputs(sound, picture).global_args("-nostdin", "-loglevel", "error")
    whole = False
    try:
        code, said = _run(streams.compile(cmd=imageio_ffmpeg.get_ffmpeg_exe()), out, timeout_s)
        if code:
            _raise_if_the_machine_failed(path, code, said)
        whole = not code
    finally:
        if not whole:
            out.unlink(missing_ok=True)
    return whole and out.stat().st_size > 0


def _run(command: list[str], out: Path, timeout_s: float) -> tuple[int, str]:
    """ffmpeg's exit status and what it said. What it gives passes through our hands into `out`: a full disk is an error of ours then,
    not words of ffmpeg's that would have to be told from those about a damaged stream."""
    said: list[bytes] = []
    hung = Event()
    with out.open("wb") as f, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def stop() -> None:
            hung.set()
            process.kill()

        assert process.stdout and process.stderr
        listener, watchdog = Thread(target=said.extend, args=(process.stderr,)), Timer(timeout_s, stop)
        listener.start()
        watchdog.start()
        try:
            shutil.copyfileobj(process.stdout, f)
        except BaseException:
            process.kill()
            raise
        finally:
            watchdog.cancel()
            listener.join()
    if hung.is_set():
        raise subprocess.TimeoutExpired(command, timeout_s)
    return process.returncode, b"".join(said).decode(errors="replace")


def _raise_if_the_machine_failed(path: Path, code: int, said: str) -> None:
    if code < 0 or code == _TOLD_TO_STOP:
        what = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else "a signal"
        raise OSError(f"{path}: ffmpeg was ended by {what} while it read the sound")
    said = said.replace(str(path.absolute()), "")  # anything may stand in a name
    for number in _MACHINE_ERRORS:
        if os.strerror(number) in said:
            raise OSError(number, f"ffmpeg while it read the sound: {os.strerror(number)}", str(path))
