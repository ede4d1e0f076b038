"""Speech as it was recorded, and recordings that a vocoder has made again: Real and Fake.

Both are of the same speakers, each in a room of their own, of the same lengths, and go the same way
to whoever hears them: through band limits, colours and hiss that are no sign of either.
"""

from dataclasses import replace

import numpy as np

from shards.sources.sounds import log_uniform, shaped
from shards.sources.speech import RATE as RATE  # Hz, of what `render` gives
from shards.sources.speech import speaker, speech
from shards.sources.takes import Site, Span, Take, deal, recorded, spread
from shards.sources.vocoder import ATTACKS, UNSEEN, vocoded

PER_CLASS = 60
SECONDS = (3.0, 9.0)
#: Parts take turns; each has speakers of its own, as many as here or, of a larger set, more.
PARTS = ("train", "train", "train", "val", "test", "test")
SPEAKERS = {"train": 10, "val": 5, "test": 5}
PER_SPEAKER = 3  # recordings of each class
CHANNEL = Site(snr=55, level=-26, noise_tilt=0, response_tilt=0, colour=3)
BUILD = "--sample_rate=16000 --segment_seconds=8 --overlap=0.5 --loudness=-23"
ABOUT = f"""\
Every sound is synthetic: no recording, no voice of anybody. Real is speech by source and filter,
Fake the same through one of {", ".join(ATTACKS)}: `Fake/attack-band/speaker03_0007.wav` is
speaker 3 through `band`. manifest.csv has each recording's speaker as its group, and its part:
no speaker is in two, and the attack `{UNSEEN}` is in the test part alone.
"""


def room(rng: np.random.Generator) -> Site:
    """Where somebody speaks."""
    return Site(
        snr=rng.uniform(26, 42),
        level=0,
        noise_tilt=rng.uniform(-5, 0),
        response_tilt=rng.uniform(-1.5, 1),
        reverberation=log_uniform(rng, 0.1, 0.7),
    )


def render(take: Take, seed: int) -> np.ndarray:
    """(n, 1) float64."""
    of = int(take.group.removeprefix("speaker"))
    somebody = np.random.default_rng([seed, 1, of])
    voice, home = speaker(somebody), room(somebody)
    rng = np.random.default_rng([seed, 2, take.number, *take.attack.encode()])
    wave = recorded(rng, speech(rng, voice, round(take.seconds * RATE)), home, RATE)
    if take.attack:
        wave = vocoded(rng, wave, ATTACKS[take.attack])
    return delivered(rng, wave)[:, None]


def delivered(rng: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """(n,) `wave` as it is published: with a band limit, a colour, a faint hiss, at a level."""
    edge, order = log_uniform(rng, 5000, 12000), rng.uniform(6, 40)
    limited = shaped(wave, lambda f: 1 / np.sqrt(1 + (f / edge) ** order), RATE)
    return recorded(rng, limited, replace(CHANNEL, snr=rng.uniform(45, 65)), RATE)


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
            lengths = spread(rng, seconds, len(numbers))
            for place, number in enumerate(numbers):
                group = f"speaker{first + place % count:02d}"
                attack = attacks[place] if label == "Fake" else ""
                folder = f"{label}/attack-{attack}" if attack else label
                name = f"{folder}/{group}_{number:04d}.wav"
                take = Take(name, label, number, lengths[place], RATE)
                takes.append(replace(take, group=group, split=part, attack=attack))
            first += count
    return takes
