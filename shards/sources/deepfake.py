"""Speech as it was spoken, and speech that went through a vocoder: Real and Fake.

Both are of the same speakers, in the same rooms, at the same levels, of the same lengths.
"""

from dataclasses import replace

import numpy as np

from shards.sources.speech import RATE as RATE  # Hz, of what `render` gives
from shards.sources.speech import speaker, speech
from shards.sources.takes import Site, Span, Take, deal, recorded, spread
from shards.sources.vocoder import ATTACKS, UNSEEN

PER_CLASS = 60
SECONDS = (3.0, 9.0)
#: Parts take turns; each has speakers of its own, as many as here or, of a larger set, more.
PARTS = ("train", "train", "val", "test")
SPEAKERS = {"train": 10, "val": 5, "test": 5}
PER_SPEAKER = 3  # recordings of each class
BUILD = "--sample_rate=16000 --segment_seconds=4 --overlap=0.5 --loudness=-23"
ABOUT = f"""\
Every sound is synthetic: no recording, no voice of anybody. Real is speech by source and filter,
Fake the same through one of {", ".join(ATTACKS)}: `Fake/attack-band/speaker03_0007.wav` is
speaker 3 through `band`. manifest.csv has each recording's speaker as its group, and its part:
no speaker is in two, and the attack `{UNSEEN}` is in the test part alone.
"""
ROOMS = (
    Site(snr=38, level=-23, noise_tilt=-3, response_tilt=0.0, reverberation=0.15),
    Site(snr=33, level=-27, noise_tilt=-2, response_tilt=-0.8, reverberation=0.3),
    Site(snr=29, level=-25, noise_tilt=-1, response_tilt=0.6, reverberation=0.5),
    Site(snr=35, level=-30, noise_tilt=-4, response_tilt=-0.4, reverberation=0.25),
    Site(snr=31, level=-21, noise_tilt=-2, response_tilt=0.4, reverberation=0.4),
)


def render(take: Take, seed: int) -> np.ndarray:
    """(n, 1) float64."""
    of = int(take.group.removeprefix("speaker"))
    voice = speaker(np.random.default_rng([seed, 1, of]))
    rng = np.random.default_rng([seed, 2, take.number, *take.attack.encode()])
    wave = speech(rng, voice, round(take.seconds * RATE))
    if take.attack:
        wave = ATTACKS[take.attack](rng, wave)
    return recorded(rng, wave, ROOMS[take.site], RATE)[:, None]


def plan(seed: int, per_class: int, seconds: Span) -> list[Take]:
    """Every recording of the set; in each part both classes are dealt the same."""
    rng, takes = np.random.default_rng([seed]), []
    for label in ("Real", "Fake"):
        first = 0
        for part, least in SPEAKERS.items():
            numbers = [n for n in range(per_class) if PARTS[n % len(PARTS)] == part]
            count = max(least, len(numbers) // PER_SPEAKER)
            known = sorted(ATTACKS, key=lambda name: name != UNSEEN)[part != "test" :]
            attacks = deal(rng, known, len(numbers))
            sites = deal(rng, range(len(ROOMS)), len(numbers))
            lengths = spread(rng, seconds, len(numbers))
            for place, number in enumerate(numbers):
                group = f"speaker{first + place % count:02d}"
                attack = attacks[place] if label == "Fake" else ""
                folder = f"{label}/attack-{attack}" if attack else label
                name = f"{folder}/{group}_{number:04d}.wav"
                take = Take(name, label, number, lengths[place], RATE, 1, sites[place])
                takes.append(replace(take, group=group, split=part, attack=attack))
            first += count
    return takes
