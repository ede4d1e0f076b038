"""Audio and video files of every kind for tests, whole and broken."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import soundfile


def tone(rate: int = 16000, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """(n, C) float32 at -6 dBFS, 440 Hz."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)
    return np.tile(wave[:, None], channels).astype("f4")


def sound(kind: str, subtype: str | None = None, wave: np.ndarray | None = None, rate=16000):
    """A file by libsndfile, as bytes."""
    out = io.BytesIO()
    soundfile.write(out, tone(rate) if wave is None else wave, rate, subtype, format=kind)
    return out.getvalue()


def riff(
    data: bytes, *, bits=16, rate=16000, channels=1, code=1, claimed: int | None = None
) -> bytes:
    """A wav whose header says what it is told to."""
    each = channels * -(-bits // 8)
    form = struct.pack("<HHIIHH", code, channels, rate, rate * each % 2**32, each, bits)
    length = len(data) if claimed is None else claimed
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, length + 36)) + body


def encode(
    file: Path,
    codec: str | None,
    *,
    form: str | None = None,
    video: bool = False,
    wave: np.ndarray | None = None,
    rate: int = 48000,
) -> bytes:
    """A file by FFmpeg, as bytes: audio by `codec`, if any, and a second of video if asked for."""
    wave = tone(rate) if wave is None else wave
    layout = {1: "mono", 2: "stereo"}[wave.shape[1]]
    with av.open(str(file), "w", format=form) as out:
        picture = out.add_stream("mpeg4", rate=10) if video else None
        audio = out.add_stream(codec, rate=rate, layout=layout) if codec else None
        if audio:
            audio.bit_rate = 96000
        if picture:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
            grey = (np.full((96, 64), 25 * n, np.uint8) for n in range(10))
            frames = [av.VideoFrame.from_ndarray(x, format="yuv420p") for x in grey]
            for frame in [*frames, None]:
                out.mux(picture.encode(frame))
        if audio:
            frame = av.AudioFrame.from_ndarray(wave.T.copy(), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            if not audio.codec_context.is_open:
                audio.codec_context.open()
            to_codec = av.AudioResampler(
                audio.format.name, layout, rate, frame_size=audio.codec_context.frame_size or 1024
            )
            for piece in [*to_codec.resample(frame), *to_codec.resample(None), None]:
                out.mux(audio.encode(piece))
    return file.read_bytes()


def broken(data: bytes, seed: int, count: int = 40) -> bytes:
    """`data` with random bytes in the second half of it."""
    random, out = np.random.default_rng(seed), bytearray(data)
    for place in random.integers(len(data) // 2, len(data), count):
        out[place] = random.integers(256)
    return bytes(out)
