"""What memory a file of an hour takes: the peak of the worker that reads it, by format.

    python bench/hour.py [--minutes=60] [--rate=44100] [--write]

A stereo file of noise and tones for each format is built beside three files of a second, so that
one worker meets it alone; VmHWM of every process of the build, read from /proc while it runs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import soundfile
from side_by_side import arguments, conditions, publish

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("wav", "flac", "mp3", "m4a")
WANTED = 500  # MB


def blocks(minutes: int, rate: int) -> Iterator[np.ndarray]:
    """(rate, 2) float32, a second at a time."""
    random, time = np.random.default_rng(0), np.arange(rate, dtype=np.float32) / rate
    for second in range(60 * minutes):
        tone = 0.2 * np.sin(2 * np.pi * (200 + 10 * (second % 100)) * time)
        yield tone[:, None] + 0.05 * random.standard_normal((rate, 2), np.float32)


def write(file: Path, minutes: int, rate: int) -> None:
    """An hour of audio, never all of it in memory."""
    if file.suffix != ".m4a":
        with soundfile.SoundFile(file, "w", rate, 2) as audio:
            for block in blocks(minutes, rate):
                audio.write(block)
        return
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        for block in blocks(minutes, rate):
            planes = np.ascontiguousarray(block.T, np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def descendants(pid: int) -> Iterator[int]:
    """The processes below one, as far as they still are."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from descendants(child)


def peak(pid: int) -> float:
    """The most memory that a process ever held, in MB (10^6 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6 if "VmHWM" in status else 0.0


def watched(words: list[str]) -> tuple[float, float, float]:
    """Seconds of a build, and the peak of its largest worker and of the process itself."""
    began, own, workers = monotonic(), 0.0, 0.0
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) as build:
        while build.poll() is None:
            try:
                own = max(own, peak(build.pid))
                workers = max([workers, *map(peak, descendants(build.pid))])
            except OSError:  # one of them has just ended
                continue
            sleep(0.02)
    if build.returncode:
        sys.exit(build.returncode)
    return monotonic() - began, workers, own


def main() -> None:
    words = arguments(__doc__ or "", minutes=60, rate=44100)
    lines = ["", "| format | MB | seconds of the build | peak MB of its worker | of the builder |"]
    lines += ["|---|---|---|---|---|"]
    worst = 0.0
    for suffix in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            audio = Path(folder, "audio")
            for n, name in enumerate(("a/short", "b/short", "b/other")):
                (audio / name).parent.mkdir(parents=True, exist_ok=True)
                second = next(blocks(1, words.rate)) / (n + 1)
                soundfile.write(audio / f"{name}.wav", second, words.rate)
            file = audio / f"a/hour.{suffix}"
            write(file, words.minutes, words.rate)
            command = [sys.executable, "-m", "shards", "build", str(audio), f"{folder}/set"]
            took, worker, own = watched([*command, "--folds=2", "--workers=1"])
            size = file.stat().st_size / 1e6
        worst = max(worst, worker)
        lines.append(f"| {suffix} | {size:.0f} | {took:.1f} | {worker:.0f} | {own:.0f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Wanted: at most {WANTED} MB a worker; {'reached' if worst <= WANTED else '**no**'}.",
    ]
    about = f"Files of {words.minutes} minutes, stereo, {words.rate} Hz, 16 kHz wanted."
    packages = ["numpy", "soundfile", "soxr", "av"]
    lines = [conditions(1, packages), about, *lines]
    publish("hour", "A file of an hour: memory", lines, words.write)


if __name__ == "__main__":
    main()
