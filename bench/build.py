"""Audio files to a finished shard set: `shards build` beside the loop that people write.

WAV files of 5 s at 44.1 kHz, mono, 16 bits, 2,000 as in ESC-50, to 128 bands at 16 kHz, n_fft 2048,
hop 512; with --many=8000 also so many, without the loop: how much of the time is the beginning and
the end of a build; with --esc10=DIR and --fsdd=DIR also ESC-10 (Ogg, a folder a class) and the Free
Spoken Digit Dataset (FLAC, `7_lucas_3.flac`).
"""

import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from time import process_time, sleep
from typing import Any

import numpy as np
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

from shards.acoustics import Acoustics
from shards.build import build
from shards.crew import fresh_context
from shards.durable import xxh128
from shards.kernels import halve
from shards.mel import MelSettings, log_mel
from shards.recipe import Features
from shards.recording import Recording
from shards.root import read_header
from shards.segment import fill_up, segment_starts
from shards.write import Numbers, pack

RATE, SECONDS, SETTINGS = 44100, 5, MelSettings()
Lines = list[str]


def write_audio(folder: Path, numbers: range) -> None:
    """Two classes of recordings: noise whose band and level change from file to file."""
    import soundfile

    for n in numbers:
        noise = np.random.default_rng(n).standard_normal(RATE * SECONDS)
        wave = np.convolve(noise, np.hanning(3 + n % 30), mode="same")
        file = folder / "ab"[n % 2] / f"{n:05}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, 0.3 * wave / np.abs(wave).max(), RATE)


def by_loop(files: list[Path], out: Path) -> None:
    """One compressed file a clip."""
    import librosa

    for file in files:
        wave, _ = librosa.load(file, sr=16000)
        mel = librosa.feature.melspectrogram(
            y=wave, sr=16000, n_fft=2048, hop_length=512, n_mels=128
        )
        np.savez_compressed(out / file.stem, mel=librosa.power_to_db(mel))


def by_build(audio: Path, out: Path, workers: int, words: dict[str, Any]) -> float:
    """Into a new folder each time: removing an old one is no part of it; its workers' seconds."""
    began, new = workers_cpu(), Path(tempfile.mkdtemp(dir=out))
    build(str(audio), str(new), folds=2, workers=workers, **words)
    return workers_cpu() - began


def workers_cpu() -> float:
    """CPU seconds of the process that starts workers, and of those it has seen end; on Linux."""
    known = vars(forkserver._forkserver).get("_forkserver_pid")  # type: ignore[attr-defined]
    if known is None:
        return 0.0
    ticks = Path(f"/proc/{known}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def by_parts(files: list[Path], seconds: float, is_stored: bool = False) -> float:
    """The floor: decode, resample and log-mel of the segments of a set, with nothing around them;
    CPU seconds. With `is_stored` also what no set does without, as bare: the header beforehand,
    which decides where shards end, the hash of the file, float16, and the entries of the tar."""
    import soundfile
    import soxr

    began, length = process_time(), round(16000 * seconds)
    for n, file in enumerate(files):
        header = read_header(file.parent, file.name) if is_stored else None
        wave, rate = soundfile.read(file, dtype="float32")
        wave = soxr.resample(wave, rate, 16000, quality="HQ")
        starts = segment_starts(len(wave), length, length)
        wave = fill_up(wave, int(starts[-1]), length, "silence")
        mel = log_mel(wave, starts, length, SETTINGS)
        if header:
            recording = Recording(file.name, "a", file.name, *header, fold="1", split="train")
            pack(recording, n, features(mel, file), Numbers({"a": 0}, {"a": 0}, {"1": 0}))
    return process_time() - began


def features(mel: np.ndarray, file: Path) -> Features:
    """Those of a recording, as far as a set cannot do without them."""
    stored, some = np.empty(mel.shape, "<f2"), len(mel)
    halve(mel.view(np.int32), stored.view(np.uint16))
    rest = np.zeros((3, mel.shape[1])), np.zeros((some, 1, 1), np.int8), Acoustics(0.0, 0, 0)
    return Features(stored, [0.0] * some, [0] * some, *rest, xxh128(file), 0.0, 0.0, 0.0)


def by_decoder(files: list[Path]) -> float:
    """What no other way with the same decoder can be faster than; CPU seconds."""
    import soundfile

    began = process_time()
    for file in files:
        soundfile.read(file, dtype="float32")
    return process_time() - began


def measure(
    name: str, audio: Path, rounds: int, pool: ProcessPoolExecutor, looped: bool, **words: Any
) -> Lines:
    """The tables of times and of marks of one folder of audio; the loop's only where asked for."""
    files = sorted(x for x in audio.rglob("*") if x.suffix in (".wav", ".ogg", ".flac"))
    parts = partial(by_parts, seconds=words["segment_seconds"])
    stored = partial(parts, is_stored=True)
    with tempfile.TemporaryDirectory() as folder:
        loop, out = Path(folder) / "loop", Path(folder) / "set"
        loop.mkdir()
        out.mkdir()
        by_hand = {"loop": lambda: by_loop(files, loop)} if looped else {}
        halves = [files[::2], files[1::2]]
        turns = take_turns(
            {
                **by_hand,
                "build, two workers": lambda: by_build(audio, out, 2, words),
                "parts, two processes": lambda: sum(pool.map(parts, halves)),
                "parts, stored, two processes": lambda: sum(pool.map(stored, halves)),
                "decoding alone, two processes": lambda: sum(pool.map(by_decoder, halves)),
                "build, one worker": lambda: by_build(audio, out, 1, words),
                "parts, one process": lambda: parts(files) * 0,
            },
            rounds,
            before=lambda: list(map(xxh128, files)),  # all find them in the page cache
        )
    pairs = [
        ("loop", "build, two workers", 5, "{:.2f}x"),
        ("loop", "decoding alone, two processes", 5, "{:.2f}x"),  # what could be reached at most
        ("parts, two processes", "build, two workers", 0.8, "{:.0%}"),
        # At most this, but for 16 bits: a build decodes them in less than float32 takes.
        ("parts, two processes", "parts, stored, two processes", 0.8, "{:.0%}"),
        ("parts, one process", "build, one worker", 0.8, "{:.0%}"),
    ]
    return [
        "",
        f"### {name}: {len(files)} files",
        "",
        *times(turns, dict.fromkeys(turns, len(files)), "file"),
        *MARKS,
        *(
            mark(f"{slow} : {fast}", ratio(turns[slow], turns[fast]), least, style)
            for slow, fast, least, style in pairs
            if slow in turns
        ),
    ]


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=5, files=2000, many=0, esc10="", fsdd="")
    one_thread()
    lines: Lines = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, fresh_context(), one_thread) as pool,
    ):
        few, many = Path(folder, "few"), Path(folder, "many")
        work = [(few, range(words.files)), *((many, range(n, words.many, 2)) for n in range(2))]
        list(pool.map(write_audio, *zip(*work, strict=True)))
        list(pool.map(sleep, [0.5, 0.5]))  # both are there, so that what follows is not theirs
        del sys.modules["__main__"].__file__  # a build's workers would import it, not `shards`
        wav = {"segment_seconds": SECONDS}
        corpora: dict[str, tuple[str, bool, dict[str, Any]]] = {
            "WAV": (str(few), True, wav),
            "WAV, many": (str(many) if words.many else "", False, wav),
            "ESC-10": (words.esc10, True, wav),
            "FSDD": (words.fsdd, True, {"segment_seconds": 1.0, "label_from": "^([0-9])"}),
        }
        for name, (audio, looped, more) in corpora.items():
            if audio:
                lines += measure(name, Path(audio), words.rounds, pool, looped, **more)
            else:
                lines += ["", f"### {name}: not measured, not asked for"]
    about = [
        conditions(words.rounds, ["numpy", "numba", "mkl_fft", "librosa", "soundfile", "soxr"]),
        "The loop, in one process: librosa.load(sr=16000), melspectrogram, power_to_db, "
        "np.savez_compressed. Parts: decode, resample and log-mel of the segments, alone. Stored: "
        "with what no set does without, the header beforehand, the hash of the file, float16 and "
        "the entries of the tar. All files are read before each turn: none waits for the disk. "
        "Imports are not counted; a build starts its workers.",
    ]
    publish("build", "Audio files to a shard set", [*about, *lines], words.write)


if __name__ == "__main__":
    main()
