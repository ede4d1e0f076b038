"""Six kinds of sound, recorded at five "sites".

The sites differ in noise floor, level and colouration, so a split that mixes them flatters. Sample
rate, channels, container and duration are dealt alike to every class and tell nothing.
"""

from pathlib import Path

import numpy as np

from shards.sources.sounds import RATE as RATE  # Hz, of what `render` gives
from shards.sources.sounds import SOUNDS, decibels, shaped, unit
from shards.sources.takes import Site, Span, Take, deal, spread, store

PER_CLASS = 20
SECONDS = (2.0, 6.0)
SAMPLE_RATES = (8000, 16000, 22050, 44100, 48000)
BROKEN, SILENT = "engine/site-2_broken.wav", "noise/site-4_silent.flac"
BUILD = (
    "--sample_rate=16000 --segment_seconds=2 --n_mels=64 --n_fft=1024 --hop_length=256 "
    "--group_from='site-[0-9]'"
)
ABOUT = f"""\
Every sound is synthetic: no recording, no copyright. One folder a class; in `site-3_07.wav` the
site (noise floor, level and colouration of its own) is site-3: group by it, for instance with
--group_from='(site-[0-9])'. {BROKEN} is not audio and {SILENT}
is digital silence, both on purpose: a build lists them in rejected.csv.
"""

SITES = (
    Site(snr=25.0, level=-22.0, noise_tilt=-3.0, response_tilt=0.0),
    Site(snr=20.0, level=-26.0, noise_tilt=-4.0, response_tilt=-0.7),
    Site(snr=16.0, level=-24.0, noise_tilt=-2.0, response_tilt=0.7),
    Site(snr=12.0, level=-28.0, noise_tilt=-4.0, response_tilt=-1.2),
    Site(snr=22.0, level=-31.0, noise_tilt=-1.0, response_tilt=1.2),
)


def render(take: Take, seed: int) -> np.ndarray:
    """(n, channels) float64: the sound at its site, often with another class in the background."""
    rng = np.random.default_rng([seed, list(SOUNDS).index(take.label), take.number])
    site, n = SITES[take.number % len(SITES)], round(take.seconds * RATE)
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


def plan(seed: int, per_class: int, seconds: Span) -> list[Take]:
    """Every recording of the set; each class is dealt the same rates, formats and lengths."""
    rng, takes = np.random.default_rng([seed]), []
    for label in SOUNDS:
        rates, channels = deal(rng, SAMPLE_RATES, per_class), deal(rng, (1, 2), per_class)
        containers = deal(rng, ("wav", "flac"), per_class)
        for number, length in enumerate(spread(rng, seconds, per_class)):
            name = f"{label}/site-{number % len(SITES) + 1}_{number:02d}.{containers[number]}"
            rate, count = rates[number], channels[number]
            takes.append(Take(name, label, number, length, rate, channels=count))
    return takes


def write_extras(seed: int, out: Path) -> None:
    """A file of random bytes and one of digital silence: every real folder has some."""
    (out / BROKEN).write_bytes(np.random.default_rng([seed, 99]).bytes(4096))
    store(out / SILENT, np.zeros(3 * 16000, np.int16), 16000)
