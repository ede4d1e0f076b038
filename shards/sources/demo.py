"""A small labelled audio folder made from a seed: six kinds of sound, recorded at five "sites".

The sites differ in noise floor, level and colouration, so a split that mixes them flatters. Sample
rate, channels, container and duration are dealt alike to every class and tell nothing.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import write_atomic
from shards.sources.sounds import RATE, SOUNDS, decibels, shaped, unit

SAMPLE_RATES = (8000, 16000, 22050, 44100, 48000)
SECONDS = (2.0, 6.0)
MARKER = ".demo.json"
BROKEN, SILENT = "engine/site-2_broken.wav", "noise/site-4_silent.flac"

README = """\
A demonstration set made by `python -m shards demo` (seed {seed}, {per_class} recordings a class).

Every sound is synthetic: no recording, no copyright. One folder a class; in `site-3_07.wav` the
site (noise floor, level and colouration of its own) is site-3: group by it, for instance with
--group_from='(site-[0-9])'. {broken} is not audio and {silent}
is digital silence, both on purpose: a build lists them in rejected.csv.
"""


@dataclass(frozen=True)
class Site:
    """Where recordings are made; dB, dBFS, dB an octave."""

    snr: float
    level: float
    noise_tilt: float
    response_tilt: float


SITES = (
    Site(snr=25.0, level=-22.0, noise_tilt=-3.0, response_tilt=0.0),
    Site(snr=20.0, level=-26.0, noise_tilt=-4.0, response_tilt=-0.7),
    Site(snr=16.0, level=-24.0, noise_tilt=-2.0, response_tilt=0.7),
    Site(snr=12.0, level=-28.0, noise_tilt=-4.0, response_tilt=-1.2),
    Site(snr=22.0, level=-31.0, noise_tilt=-1.0, response_tilt=1.2),
)


@dataclass(frozen=True)
class Take:
    """One recording to be made."""

    label: str
    number: int
    sample_rate: int
    channels: int
    container: str
    seconds: float

    @property
    def site(self) -> int:
        """The number of its site, 1 to 5: they take turns."""
        return self.number % len(SITES) + 1

    @property
    def name(self) -> str:
        """Its path inside the folder."""
        return f"{self.label}/site-{self.site}_{self.number:02d}.{self.container}"


def render(take: Take, seed: int) -> np.ndarray:
    """(n, channels) float64: the sound at its site, often with another class in the background."""
    rng = np.random.default_rng([seed, list(SOUNDS).index(take.label), take.number])
    site, n = SITES[take.site - 1], round(take.seconds * RATE)
    sound = unit(SOUNDS[take.label](rng, n))
    other = rng.choice([label for label in SOUNDS if label != take.label])
    if rng.uniform() < 0.6:
        sound += 10 ** (-rng.uniform(3, 15) / 20) * unit(SOUNDS[other](rng, n))
    heard = unit(shaped(sound, lambda f: decibels(site.response_tilt, f)))
    floor = 10 ** (-(site.snr + rng.uniform(-2, 2)) / 20)
    level = 10 ** ((site.level + rng.uniform(-3, 3)) / 20)
    channels = []
    for _ in range(take.channels):
        hiss = unit(shaped(rng.standard_normal(n), lambda f: decibels(site.noise_tilt, f)))
        channels.append(level * (rng.uniform(0.7, 1) * heard + floor * hiss))
    return np.stack(channels, axis=1)


def record(take: Take, seed: int, out: Path) -> None:
    """Write one recording, 16 bit, at its own rate."""
    import soundfile
    import soxr

    wave = soxr.resample(render(take, seed), RATE, take.sample_rate, quality="HQ")
    wave *= min(1, 0.99 / np.abs(wave).max())
    soundfile.write(out / take.name, wave, take.sample_rate, subtype="PCM_16")


def takes(seed: int, per_class: int) -> list[Take]:
    """Every recording of the set; each class is dealt the same rates, formats and lengths."""
    rng = np.random.default_rng([seed])

    def deal(values: Sequence[Any]) -> list[Any]:
        return [values[i % len(values)] for i in rng.permutation(per_class)]

    return [
        Take(label, number, *properties)
        for label in SOUNDS
        for number, properties in enumerate(
            zip(
                deal(SAMPLE_RATES),
                deal((1, 2)),
                deal(("wav", "flac")),
                np.linspace(*SECONDS, per_class)[rng.permutation(per_class)].tolist(),
                strict=True,
            )
        )
    ]


def synthesize(out: str | os.PathLike[str], seed: int = 0, per_class: int = 20) -> int:
    """Write the demonstration set: `per_class` recordings of each of six classes, from five sites.

    The same seed gives the same bytes (with the same numpy, scipy, soxr and libsndfile). One more
    file is no audio and one is silent. A folder that holds this very set is left alone, one that
    was interrupted is finished.

    Returns:
        The number of audio files, the two bad ones included.

    Raises:
        UserError: `out` holds anything else, or a seed or count that is out of range.
    """
    if seed < 0 or per_class < 1:
        raise UserError(f"seed {seed}, per_class {per_class}: give at least 0 and at least 1")
    out, planned = Path(out), takes(seed, per_class)
    readme = README.format(seed=seed, per_class=per_class, broken=BROKEN, silent=SILENT).encode()
    marker = json.dumps({"seed": seed, "per_class": per_class}).encode()
    contents = [BROKEN, SILENT, *(take.name for take in planned)]
    if is_finished(out, readme, marker, contents):
        return len(contents)
    for label in SOUNDS:
        (out / label).mkdir(parents=True, exist_ok=True)
    (out / "README.txt").write_bytes(readme)  # first: by it a second start knows its own work
    for take in planned:
        record(take, seed, out)
    write_bad_files(seed, out)
    write_atomic(out / MARKER, marker)
    return len(contents)


def is_finished(out: Path, readme: bytes, marker: bytes, contents: list[str]) -> bool:
    """Whether `out` holds the whole set; a UserError if it holds anything but (a part of) it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; give a new folder")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found:
        return False
    same = {"README.txt": readme, MARKER: marker}
    ours = all((out / name).read_bytes() == data for name, data in same.items() if name in found)
    strangers = sorted(found - {*contents, *same})
    if strangers or not ours or "README.txt" not in found:
        what = f" ({strangers[0]})" if strangers else ""
        raise UserError(f"{out}: not empty, and not this demo set{what}; give a new folder")
    return found == {*contents, *same}


def write_bad_files(seed: int, out: Path) -> None:
    """A file of random bytes and one of digital silence: every real folder has some."""
    import soundfile

    (out / BROKEN).write_bytes(np.random.default_rng([seed, 99]).bytes(4096))
    soundfile.write(out / SILENT, np.zeros(3 * 16000, np.int16), 16000, subtype="PCM_16")
