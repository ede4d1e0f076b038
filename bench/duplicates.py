"""How well copies are found, on a folder of audio, and how fast, up to 10^5 made-up segments.

    python bench/duplicates.py [AUDIO] [--group_from=REGEX] [--sizes=5000,100000] [--write]

Each recording is changed in ten ways; its first five seconds are compared with those of the
recording it was made from (recall), and all recordings with each other. Pairs of one group, and
those whose waveforms correlate by 0.5 or more, are not counted as false.
"""

import argparse
import io
import json
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import soundfile
import soxr
from side_by_side import conditions, publish

from shards.audio import decode
from shards.duplicates import Prints, find_copies
from shards.fingerprint import grain
from shards.folder import is_audio
from shards.mel import MelSettings, log_mel

SECONDS, SHIFT = 5.0, 0.3
MEL = MelSettings()


def mp3(wave: np.ndarray, rate: int) -> np.ndarray:
    """Through MP3 at 64 kb/s and back; libsndfile spaces its levels evenly from 320 to 32 kb/s
    (from 160 to 8 below 32 kHz)."""
    level = (320 - 64) / (320 - 32) if rate >= 32000 else (160 - 64) / (160 - 8)
    file = io.BytesIO()
    words = {"bitrate_mode": "CONSTANT", "compression_level": level}
    soundfile.write(file, np.clip(wave, -1, 1), rate, format="MP3", **words)
    assert abs(file.tell() * 8 * rate / len(wave) / 64_000 - 1) < 0.1
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def gain(wave: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Louder or quieter, at 16 bit: what is over full scale is clipped."""
    return np.clip(np.round(wave * factor * 2**15), -(2**15), 2**15 - 1).astype("f4") / 2**15


def early(wave: np.ndarray, rate: int) -> np.ndarray:
    """Without its beginning."""
    return np.concatenate([wave[round(SHIFT * rate) :], np.zeros(round(SHIFT * rate), "f4")])


def late(wave: np.ndarray, rate: int) -> np.ndarray:
    """Behind a silence."""
    return np.concatenate([np.zeros(round(SHIFT * rate), "f4"), wave])


CHANGES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "none": lambda w, r: w,
    "mp3 64 kb/s": mp3,
    "-12 dB": lambda w, r: gain(w, r, 0.25),
    "+12 dB, clipped": lambda w, r: gain(w, r, 4.0),
    "0.3 s earlier": early,
    "0.3 s later": late,
    "mp3, -12 dB": lambda w, r: mp3(w / 4, r),
    "mp3, 0.3 s earlier": lambda w, r: mp3(early(w, r), r),
    "mp3, -12 dB, 0.3 s earlier": lambda w, r: mp3(early(w, r) / 4, r),
    "mp3 twice, -12 dB, 0.3 s later": lambda w, r: mp3(late(mp3(w, r), r) / 4, r),
    "mp3, +12 dB clipped, 0.3 s later": lambda w, r: mp3(late(w, r) * 4, r),
}


def changed(path: Path) -> np.ndarray:
    """(changes, G, B): the grain of the first five seconds after each change."""
    frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave, length = frames.mean(axis=1), round(SECONDS * MEL.sample_rate)
    made = [soxr.resample(change(wave, rate), rate, MEL.sample_rate) for change in CHANGES.values()]
    cut = np.stack([np.pad(x[:length], (0, max(0, length - len(x)))) for x in made])
    values = [log_mel(x, np.zeros(1, np.int64), length, MEL)[0] for x in cut]
    return grain(np.stack(values), MEL.hop_length / MEL.sample_rate)


def correlation(a: Path, b: Path) -> float:
    """The highest correlation of two waveforms over all shifts."""
    from scipy.signal import fftconvolve

    x, y = (decode(path, MEL.sample_rate) for path in (a, b))
    product = np.abs(fftconvolve(x, y[::-1])).max()
    return float(product / np.sqrt(np.square(x).sum() * np.square(y).sum()))


def pairs_of(grains: np.ndarray) -> set[tuple[int, int]]:
    """The copies among segments that are a recording each."""
    n = len(grains)
    xxh3 = np.arange(n, dtype=np.uint64)  # none is exact: the grain alone has to tell
    return {(x.first, x.second) for x in find_copies(Prints(np.arange(n), xxh3, grains, SECONDS))}


def accuracy(audio: Path, group_from: str | None) -> list[str]:
    """Recall of each change, as a table, and how many pairs are false."""
    paths = sorted(p for p in audio.rglob("*") if is_audio(str(p)))
    with ProcessPoolExecutor() as pool:
        grains = np.stack(list(pool.map(changed, paths, chunksize=4)), axis=1)
    n = len(paths)
    lines = [f"| change of {n} recordings | recall |", "|---|---|"]
    for name, copies in zip(list(CHANGES)[1:], grains[1:], strict=True):
        found = pairs_of(np.concatenate([grains[0], copies]))
        lines.append(f"| {name} | {sum((k, k + n) in found for k in range(n)) / n:.1%} |")
    groups = [re.search(group_from, p.name)[0] if group_from else str(p) for p in paths]
    found = pairs_of(grains[0])
    other = [(a, b) for a, b in found if groups[a] != groups[b]]
    false = [(a, b) for a, b in other if correlation(paths[a], paths[b]) < 0.5]
    pairs = (
        f"Pairs among the originals: {len(found)} of {n * (n - 1) // 2}; {len(other)} of them of"
    )
    end = (
        f"{pairs} two groups; {len(false)} of these false, their waveforms do not correlate either."
    )
    return [*lines, "", end]


def made_up(segments: int, words: int) -> np.ndarray:
    """(S, G, B) grains of noise; a third of their energy is one of so many `words`, if any.

    The last hundredth are copies of the first, under noise, 0.3 s later.
    """
    random, planted = np.random.default_rng(0), segments // 100
    said = random.standard_normal((max(1, words), 157, 32), np.float32)
    grains = np.empty((segments, 157, 32), np.int8)
    for first in range(0, segments, 5000):
        noise = random.standard_normal((min(5000, segments - first), 157, 32), np.float32)
        if words:
            noise = (
                np.sqrt(2 / 3) * noise
                + np.sqrt(1 / 3) * said[random.integers(0, words, len(noise))]
            )
        grains[first : first + 5000] = np.rint(20 * noise).clip(-100, 100)
    grains[-planted:, 9:] = grains[:planted, :-9] // 2 + grains[-planted:, 9:] // 3
    return grains


def child(segments: int, words: int) -> None:
    """One search; prints pairs found, those of them planted, seconds, and peak memory in GB."""
    grains, planted = made_up(segments, words), segments // 100
    began, busy = perf_counter(), process_time()
    found = pairs_of(grains)
    took = perf_counter() - began, process_time() - busy
    right = sum((k, segments - planted + k) in found for k in range(planted))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps([len(found), right, *took, peak]))


def speed(sizes: list[int]) -> list[str]:
    """A table: how long a search takes, by the number of segments."""
    head = ("segments", "words", "copies planted", "found", "others", "s", "CPU s", "peak GB")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for words in (0, 1000):
        for n in sizes:
            line = [sys.executable, __file__, f"--child={n},{words}"]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
            pairs, right, took, busy, peak = json.loads(done.stdout)
            cells = f"{n:,} | {words} | {n // 100} | {right} | {pairs - right} | {took:.1f}"
            lines.append(f"| {cells} | {busy:.1f} | {peak:.2f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio", type=Path, nargs="?")
    parser.add_argument("--group_from")
    parser.add_argument("--sizes", default="5000,10000,20000,50000,100000")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        return child(*map(int, words.child.split(",")))
    lines = [conditions(1, ["numpy", "numba", "soundfile"]), ""]
    lines += accuracy(words.audio, words.group_from) if words.audio else []
    lines += ["", *speed(list(map(int, words.sizes.split(","))))]
    command = "duplicates.py"
    if words.audio:
        command += f" {words.audio.name}"
    if words.group_from:
        command += f" --group_from={shlex.quote(words.group_from)}"
    publish("duplicates", "Copies: how many are found, and how fast", lines, words.write, command)


if __name__ == "__main__":
    main()
