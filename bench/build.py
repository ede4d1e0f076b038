"""Audio files to a finished shard set: `shards build` beside the loop that people write.

WAV files of 5 s at 44.1 kHz, mono, 16 bits, to 128 bands at 16 kHz, n_fft 2048, hop 512.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import librosa
import numpy as np
import soundfile
import soxr
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

from shards.build import build
from shards.mel import MelSettings, log_mel

RATE, SECONDS, SETTINGS = 44100, 5, MelSettings()


def write_audio(folder: Path, count: int) -> list[Path]:
    """Two classes of recordings: noise whose band and level change from file to file."""
    random, files = np.random.default_rng(0), []
    for n in range(count):
        noise = random.standard_normal(RATE * SECONDS)
        wave = np.convolve(noise, np.hanning(3 + n % 30), mode="same")
        files.append(folder / "ab"[n % 2] / f"{n:05}.wav")
        files[-1].parent.mkdir(exist_ok=True)
        soundfile.write(files[-1], 0.3 * wave / np.abs(wave).max(), RATE)
    return files


def by_loop(files: list[Path], out: Path) -> None:
    """One compressed file a clip."""
    for file in files:
        wave, _ = librosa.load(file, sr=16000)
        mel = librosa.feature.melspectrogram(
            y=wave, sr=16000, n_fft=2048, hop_length=512, n_mels=128
        )
        np.savez_compressed(out / file.stem, mel=librosa.power_to_db(mel))


def by_build(audio: Path, out: Path, workers: int) -> None:
    """Into a new folder each time: removing an old one is no part of it."""
    new = Path(tempfile.mkdtemp(dir=out))
    build(str(audio), str(new), segment_seconds=SECONDS, folds=2, workers=workers)


def by_parts(files: list[Path]) -> float:
    """The floor: decode, resample and log-mel, with nothing around them; CPU seconds."""
    began, start = process_time(), np.zeros(1, np.int64)
    for file in files:
        wave, rate = soundfile.read(file, dtype="float32")
        wave = soxr.resample(wave, rate, 16000, quality="HQ")
        log_mel(wave, start, len(wave), SETTINGS)
    return process_time() - began


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=5, files=600)
    one_thread()
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, get_context("forkserver"), one_thread) as pool,
    ):
        audio, loop, out = (Path(folder) / name for name in ("audio", "loop", "set"))
        for place in (audio, loop, out):
            place.mkdir()
        files = write_audio(audio, words.files)
        turns = take_turns(
            {
                "loop": lambda: by_loop(files, loop),
                "build, two workers": lambda: by_build(audio, out, 2),
                "parts, two processes": lambda: sum(pool.map(by_parts, [files[::2], files[1::2]])),
                "build, one worker": lambda: by_build(audio, out, 1),
                "parts, one process": lambda: by_parts(files) * 0,
            },
            words.rounds,
        )
    lines = [
        conditions(words.rounds, ["numpy", "librosa", "soundfile", "soxr", "torch"]),
        f"{len(files)} files. The loop, in one process: librosa.load(sr=16000), melspectrogram, "
        "power_to_db, np.savez_compressed. Parts: decode, resample and log-mel alone. Imports are "
        "not counted; a build with two workers starts them, and their CPU seconds are not counted.",
        "",
        *times(turns, dict.fromkeys(turns, len(files)), "file"),
        *MARKS,
        mark("loop : build, two workers", ratio(turns["loop"], turns["build, two workers"]), 5),
        *(
            mark(
                f"parts : build, {n}",
                ratio(turns[f"parts, {p}"], turns[f"build, {n}"]),
                0.8,
                "{:.0%}",
            )
            for n, p in (("two workers", "two processes"), ("one worker", "one process"))
        ),
    ]
    publish("build", "Audio files to a shard set", lines, words.write)


if __name__ == "__main__":
    main()
