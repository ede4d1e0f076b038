"""A recording into spectrograms: decode, condition, cut, transform.

Shapes: `S` segments, `M` mel bands, `T` frames.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.acoustics import Acoustics, acoustics
from shards.audio import SILENT_PEAK, AudioError, Levels, dc_offset, decode, is_silent
from shards.condition import Conditioning
from shards.container import unreadable
from shards.durable import xxh128
from shards.fingerprint import grain
from shards.mel import MelSettings, log_mel
from shards.recording import Piece, Reject
from shards.remote import DISK
from shards.root import Root, local
from shards.segment import fill_up, segment_starts

NO_MEMORY = "needs more memory than there is"
RUN = 1 << 20  # values of the spectrograms that are made at once, in float32


class Features(NamedTuple):
    """What a recording becomes."""

    values: np.ndarray  # (S, M, T) float16, dB
    starts: list[float]  # (S,) seconds
    xxh3: list[int]  # (S,) of each segment's bytes
    sums: np.ndarray  # (3, M) float64 over `values`: count, sum, sum of squares
    grains: np.ndarray  # (S, G, B) int8, see shards.fingerprint
    acoustics: Acoustics
    xxh128: str  # of the audio file
    seconds: float  # decoded
    clipped: float  # share of its samples at or above full scale
    dc: float  # mean of the wave


class Heard(NamedTuple):
    """A recording as it is cut; the last four are those of Features."""

    piece: Piece
    wave: np.ndarray  # (n,) float32, n >= 1
    offset: int  # samples that were trimmed off its start
    xxh128: str
    seconds: float
    clipped: float
    dc: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How audio becomes samples; lengths in samples at `mel.sample_rate`."""

    audio: Root
    mel: MelSettings
    conditioning: Conditioning
    length: int
    hop: int
    pad: str = "silence"
    tail: str = "pad"
    min_seconds: float = 0.0
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int]:
        """(M, T) of every sample."""
        return self.mel.n_mels, self.mel.frames(self.length)

    def extract(self, piece: Piece) -> Features | Reject:
        """Decode, cut and transform one recording, or tell why it cannot be used."""
        heard = self.hear(piece)
        return heard if isinstance(heard, Reject) else self.see(heard)

    def hear(self, piece: Piece) -> Heard | Reject:
        """Decode and condition one recording, or tell why it cannot be used."""
        try:
            with local(self.audio, piece.path) as file:
                return self.heard(piece, file)
        except AudioError as error:
            return Reject(piece.path, str(error))
        except OSError as error:  # gone, or no longer to be read
            if error.errno in DISK:  # there is no room to fetch it to
                raise
            return Reject(piece.path, str(unreadable(str(self.audio / piece.path), error)))
        except MemoryError:
            return Reject(piece.path, NO_MEMORY)

    def heard(self, piece: Piece, file: Path) -> Heard:
        """A recording, in a file here; an AudioError if nothing comes of it."""
        levels = Levels()
        wave = decode(file, self.mel.sample_rate, piece.start, piece.end, levels)
        dc = dc_offset(wave)
        wave, offset = self.conditioning.trimmed(wave)
        check_useful(wave, levels, len(wave) / self.mel.sample_rate, self.min_seconds)
        self.conditioning.level(wave)
        digest = xxh128(file) if piece.is_whole else file_hash(file, file.stat().st_mtime_ns)
        return Heard(piece, wave, offset, digest, levels.seconds, levels.clipped, dc)

    def see(self, heard: Heard) -> Features | Reject:
        """The spectrograms of a recording, or that memory is too short for them."""
        import xxhash

        starts = segment_starts(len(heard.wave), self.length, self.hop, self.tail)
        try:
            values, sums, grains, about = self.spectrograms(heard.wave, starts)
        except MemoryError:
            return Reject(heard.piece.path, NO_MEMORY)
        return Features(
            values,
            (heard.piece.start + (heard.offset + starts) / self.mel.sample_rate).tolist(),
            [xxhash.xxh3_64_intdigest(value) for value in values],
            sums,
            grains,
            about,
            *heard[3:],
        )

    def spectrograms(
        self, wave: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Acoustics]:
        """(S, M, T) float16 of the segments at `starts` (S,), their sums (3, M), their grains.

        A run of them at a time: only one is ever held in float32.
        """
        from shards.kernels import halve

        values = np.empty((len(starts), *self.shape), "<f2")
        sums, grains = np.zeros((3, self.mel.n_mels)), []
        step = max(1, RUN // values[0].size)
        for first in range(0, len(starts), step):
            run = starts[first : first + step]
            places = run - run[0]
            piece = wave[run[0] : run[-1] + self.length]
            piece = fill_up(piece, int(places[-1]), self.length, self.pad)
            mel = log_mel(piece, places, self.length, self.mel, self.device)
            mel = np.ascontiguousarray(mel)
            halve(mel.view(np.int32), values[first : first + step].view(np.uint16))
            sums += band_sums(mel)
            grains.append(grain(mel, self.mel.hop_length / self.mel.sample_rate))
            if first == 0:
                about = acoustics(mel)
        return values, sums, np.concatenate(grains), about


@lru_cache(maxsize=1)
def file_hash(file: Path, changed: int) -> str:
    """The XXH3-128 of an audio file; its pieces follow each other, and all want the same one."""
    return xxh128(file)


def check_useful(wave: np.ndarray, levels: Levels, seconds: float, least: float) -> None:
    """Raise an AudioError about a wave that is too short or nothing but silence."""
    if seconds < least:
        raise AudioError(f"too short: {seconds:.2f} s")
    if is_silent(wave):
        cancel = levels.peak >= SILENT_PEAK
        raise AudioError("silent: its channels cancel each other" if cancel else "silent")


def band_sums(values: np.ndarray) -> np.ndarray:
    """(3, M) float64 of (S, M, T) float32: count, sum and sum of squares per mel band."""
    from shards.kernels import add_sums

    sums = np.zeros((3, values.shape[1]))
    add_sums(values, sums)
    return sums
