"""Log-mel on a processor: shards.mel beside librosa, torchaudio and a bare real FFT.

Clips of 5 s at 16 kHz, 128 bands, n_fft 2048, hop 512. One thread a process, which keeps memory as
a worker of `build` does. The floor takes as many frames at a time as MKL is quickest with, in the
cache; so it stands beside clips that are there too, as in a build, where a resampler made them.
"""

import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from time import process_time

import librosa
import mkl_fft
import numpy as np
import torch
import torchaudio
from side_by_side import (
    MARKS,
    arguments,
    conditions,
    mark,
    one_thread,
    publish,
    ratio,
    take_turns,
    times,
)

from shards.frames import pages
from shards.mel import MelSettings, log_mel
from shards.process import keep_memory

SETTINGS, LENGTH, LONG = MelSettings(), 80000, 128000
START = np.zeros(1, np.int64)
FEW, BATCH = 8, 32  # clips that stay in the cache; frames of the floor at a time


def like_a_worker() -> None:
    """What a worker of `build` does for itself before it begins."""
    one_thread()
    keep_memory(2**24)


@cache  # the processes of a pool make their own, and keep them
def clips(count: int) -> np.ndarray:
    """(count, LENGTH) float32: chords that fade, over noise."""
    random, time = np.random.default_rng(0), np.arange(LENGTH) / 16000
    pitches = random.uniform(60, 6000, (count, 8, 1))
    chords = np.sin(2 * np.pi * pitches * time).mean(axis=1) * np.exp(-time)
    return (chords + 1e-3 * random.standard_normal((count, LENGTH))).astype(np.float32)


def by_librosa(waves: np.ndarray) -> None:
    for wave in waves:
        mel = librosa.feature.melspectrogram(
            y=wave, sr=16000, n_fft=2048, hop_length=512, n_mels=128
        )
        librosa.power_to_db(mel, top_db=None)


def by_shards(count: int, different: int) -> float:
    began, waves = process_time(), clips(different)
    for n in range(count):
        log_mel(waves[n % different], START, LENGTH, SETTINGS)
    return process_time() - began


def by_torchaudio(waves: torch.Tensor, transform: torch.nn.Module) -> None:
    transform(waves)


@cache  # filling them is no part of the floor
def fft_arrays() -> tuple[np.ndarray, np.ndarray]:
    """BATCH frames of noise, and room for their spectrum."""
    frames = pages(np.float32, BATCH, SETTINGS.n_fft)
    frames[:] = np.random.default_rng(0).standard_normal(frames.shape, np.float32)
    return frames, pages(np.complex64, BATCH, SETTINGS.n_fft // 2 + 1)


def by_fft(count: int) -> None:
    """The bare floor: MKL's real FFT of as many frames, and nothing else."""
    frames, spectrum = fft_arrays()
    for _ in range(round(count * SETTINGS.frames(LENGTH) / BATCH)):
        mkl_fft.rfft(frames, out=spectrum)


def one_by_one(recording: np.ndarray, starts: np.ndarray) -> None:
    """The segments in an array, as log_mel of all at once gives them."""
    mel = np.empty((len(starts), SETTINGS.n_mels, SETTINGS.frames(LONG)), np.float32)
    for n, start in enumerate(starts):
        mel[n] = log_mel(recording[start : start + LONG], START, LONG, SETTINGS)[0]


def worst_error(waves: np.ndarray) -> float:
    """In dB against float64, over all that lies within 60 dB of its frame's loudest band."""
    frames = SETTINGS.frames(LENGTH)
    triangles = librosa.filters.mel(sr=16000, n_fft=2048, n_mels=128, dtype=np.float64)
    worst = 0.0
    for wave in waves.astype(np.float64):
        spectrum = librosa.stft(wave, n_fft=2048, hop_length=512, pad_mode="constant")
        power = (triangles @ np.abs(spectrum) ** 2)[:, :frames]
        found = log_mel(wave.astype(np.float32), START, LENGTH, SETTINGS)[0]
        heard = power > np.maximum(1e-6 * power.max(axis=0), 1e-10)
        worst = max(worst, float(np.abs(found - 10 * np.log10(power))[heard].max()))
    return worst


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=9, clips=256)
    warnings.simplefilter("ignore")
    like_a_worker()
    waves, frames = clips(words.clips), SETTINGS.frames(LENGTH)
    batch = torch.from_numpy(waves)
    transform = torch.nn.Sequential(
        torchaudio.transforms.MelSpectrogram(
            16000, 2048, None, 512, n_mels=128, norm="slaney", mel_scale="slaney"
        ),
        torchaudio.transforms.AmplitudeToDB(),
    )
    recording = waves.reshape(-1)[: LENGTH * min(64, words.clips)]
    starts = np.arange(0, len(recording) - LONG + 1, LONG // 2)
    with ProcessPoolExecutor(2, get_context("forkserver"), like_a_worker) as pool:
        halves = [len(waves) // 2, len(waves) - len(waves) // 2]
        turns = take_turns(
            {
                "librosa": lambda: by_librosa(waves),
                "shards": lambda: by_shards(len(waves), len(waves)) * 0,
                "shards, in the cache": lambda: by_shards(len(waves), FEW) * 0,
                "shards, two processes": lambda: sum(pool.map(by_shards, halves, halves)),
                "torchaudio, one batch": lambda: by_torchaudio(batch, transform),
                "bare real FFT": lambda: by_fft(len(waves)),
                "8 s by 4 s, each alone": lambda: one_by_one(recording, starts),
                "8 s by 4 s, shared": lambda: log_mel(recording, starts, LONG, SETTINGS) is None,
            },
            words.rounds,
        )
    units = {name: len(waves) * frames for name in turns}
    units |= {name: len(starts) * SETTINGS.frames(LONG) for name in turns if "8 s" in name}
    ours, error = turns["shards"], worst_error(waves)
    lines = [
        conditions(words.rounds, ["numpy", "numba", "mkl_fft", "librosa", "torch", "torchaudio"]),
        f"{len(waves)} clips of 5 s; {len(starts)} segments of 8 s that overlap by half.",
        "",
        *times(turns, units, "frame"),
        *MARKS,
        mark("librosa : shards, a core", ratio(turns["librosa"], ours, "cpu"), 6),
        mark(
            "librosa on a core : shards on two",
            ratio(turns["librosa"], turns["shards, two processes"]),
            12,
        ),
        mark("torchaudio's batch : shards", ratio(turns["torchaudio, one batch"], ours, "cpu"), 3),
        mark(
            "bare real FFT : shards, in the cache",
            ratio(turns["bare real FFT"], turns["shards, in the cache"], "cpu"),
            0.75,
            "{:.0%}",
        ),
        mark(
            "overlap: alone : shared",
            ratio(turns["8 s by 4 s, each alone"], turns["8 s by 4 s, shared"], "cpu"),
            1.8,
        ),
        "",
        "Ratios are of CPU seconds, those on two cores of wall seconds.",
        "Largest error against float64, down to 60 dB below a frame's loudest band: "
        f"{error:.1e} dB (wanted: at most 1e-3).",
    ]
    publish("mel", "Log-mel on a processor", lines, words.write)


if __name__ == "__main__":
    main()
