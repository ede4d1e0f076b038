"""Audio files opened: by libsndfile, and by FFmpeg (PyAV) what libsndfile does not know.

Shapes: `n` frames, `C` channels. Samples are float32, full scale 1.0.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

BLOCK = 1 << 18  # values read at once: 1 MB
RATES = range(1000, 768_001)  # Hz; a header that says anything else is broken

#: What FFmpeg may take a file for. Playlists, image sequences and the like would have it open other
#: files, or the network; the raw formats would take any bytes for audio.
FORMATS = "aac,ac3,aiff,amr,ape,asf,avi,caf,eac3,flac,matroska,mov,mp3,ogg,tta,w64,wav,wv"


class AudioError(Exception):
    """A recording that cannot be used; the message is its reason in rejected.csv, a single line."""


class Probe(NamedTuple):
    """What a file's header says. `frames` is 0 where it leaves that open."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


class Source(NamedTuple):
    """An open file; `blocks(first, last)` yields its frames as (n, C) float32 or int16, some 10^5
    values at once."""

    header: Probe
    blocks: Callable[[int, int | None], Iterator[np.ndarray]]


@contextmanager
def source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open an audio file.

    Raises:
        AudioError: no regular file, no audio, or damaged where its decoder cannot go on; the last
            also out of the body of the `with`, while blocks are read.
    """
    import soundfile

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would be waited for
            raise AudioError("not readable as audio: not a regular file")
        file = soundfile.SoundFile(os.fspath(path))
    except OSError as error:
        raise unreadable(path, error) from None
    except soundfile.SoundFileError as error:
        with ffmpeg(path, unreadable(path, error)) as opened:
            yield opened
        return
    header = checked(Probe(file.frames, file.samplerate, file.channels))
    with file:
        try:
            yield Source(header, lambda first, last: sndfile_blocks(file, first, last))
        except soundfile.SoundFileError as error:
            raise unreadable(path, error) from None


def sndfile_blocks(file: Any, first: int, last: int | None) -> Iterator[np.ndarray]:
    """The frames from `first` to `last` of a soundfile.SoundFile; as int16 if they have 16 bits."""
    if first:
        file.seek(min(first, file.frames))
    left = file.frames - first if last is None else last - first
    kind = "int16" if file.subtype == "PCM_16" else "float32"
    most = max(1, BLOCK // file.channels)
    while left > 0:
        block = np.empty((min(most, left), file.channels), kind)
        if not (n := file.buffer_read_into(block, kind)):
            return
        left -= n
        yield block[:n]


@contextmanager
def ffmpeg(path: str | os.PathLike[str], otherwise: AudioError) -> Iterator[Source]:
    """Open the first audio stream of a file by FFmpeg; raises `otherwise` if it is no container."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        container = av.open(f"file:{os.fspath(path)}", options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError):
        raise otherwise from None
    with container:
        if not container.streams.audio:
            raise AudioError("no audio stream in it")
        stream = container.streams.audio[0]
        if not stream.codec_context:
            raise AudioError("no decoder for its audio stream")
        if not stream.rate:
            raise otherwise
        seconds = (container.duration or 0) / av.time_base
        header = checked(Probe(max(0, round(seconds * stream.rate)), stream.rate, stream.channels))
        try:
            yield Source(header, lambda *span: between(ffmpeg_blocks(container, stream), *span))
        except av.FFmpegError as error:
            raise unreadable(path, error) from None


def ffmpeg_blocks(container: Any, stream: Any) -> Iterator[np.ndarray]:
    """All frames of a PyAV stream, its small packets joined."""
    import av

    to_float, held, n = av.AudioResampler(format="fltp"), [], 0
    for frame in container.decode(stream):
        try:
            parts = [part.to_ndarray().T for part in to_float.resample(frame)]
        except ValueError:
            raise AudioError("its sample rate or channels change midway") from None
        held += parts
        n += sum(map(len, parts))
        if n * stream.channels >= BLOCK:
            yield np.concatenate(held)
            held, n = [], 0
    if held:
        yield np.concatenate(held)


def between(blocks: Iterator[np.ndarray], first: int, last: int | None) -> Iterator[np.ndarray]:
    """The frames from `first` to `last` of a file that cannot be sought to the sample."""
    at = 0
    for block in blocks:
        piece = block[max(0, first - at) : None if last is None else last - at]
        if len(piece):
            yield piece
        at += len(block)
        if last is not None and at >= last:
            return


def checked(header: Probe) -> Probe:
    """The header, if there can be such a file."""
    if header.sample_rate not in RATES:
        raise AudioError(
            f"a sample rate of {header.sample_rate} Hz; between {RATES[0]} and {RATES[-1]} is used"
        )
    return header


def unreadable(path: str | os.PathLike[str], error: Exception) -> AudioError:
    """The reason without the path, which has a column of its own, on one line."""
    text = str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error)
    if "possibly a pipe" in text:  # libmpg123, where it finds no frame
        text = "format not recognised"
    reason = " ".join(text.replace(os.fspath(path), "the file").split()).rstrip(".")
    return AudioError(f"not readable as audio: {reason[:1].lower()}{reason[1:]}")
