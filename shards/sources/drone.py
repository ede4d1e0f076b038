"""Drones, cars and speech, each in wind and now and then with one of the others far away."""

import numpy as np

from shards.sources.sounds import decibels, log_uniform, pulses, resonances, shaped, unit, wander
from shards.sources.speech import RATE as RATE  # Hz, of what `render` gives
from shards.sources.speech import speaker, speech
from shards.sources.takes import Site, Span, Take, deal, recorded, spread

PER_CLASS = 40
SECONDS = (4.0, 4.0)
BLADES, ROTORS = 2, 4
BUILD = (
    "--sample_rate=16000 --segment_seconds=2 --n_mels=64 --n_fft=1024 --hop_length=256 "
    "--split=0.7,0.15,0.15 --group_from='place-[0-9]+'"
)
ABOUT = """\
Every sound is synthetic: drones of four rotors, cars that pass by, speech by source and filter. One
folder a class; recordings of one place, as in `place-3_07.wav`, share its noise and level: group by
it, --group_from='place-[0-9]+'.
"""
PLACES = 20


def drone(rng: np.random.Generator, n: int) -> np.ndarray:
    """Four rotors that a controller keeps near one speed."""
    passing = log_uniform(rng, 90, 260)  # blades a second
    steering = rng.uniform(0.01, 0.05)
    rotors = []
    for _ in range(ROTORS):
        drift = steering * wander(rng, n, rng.uniform(1, 5), RATE)
        rotors.append(rotor(rng, passing * rng.uniform(0.96, 1.04) * 2**drift))
    return np.sum(rotors, axis=0)


def rotor(rng: np.random.Generator, passing: np.ndarray) -> np.ndarray:
    """Blades that pass (n,) times a second: harmonics of that, uneven by the shaft's turn, and
    air that each blade cuts."""
    n, phase = len(passing), 2 * np.pi * np.cumsum(passing) / RATE
    k = np.arange(1, 1 + int(0.45 * RATE / passing.max()))
    weights = 10 ** (-rng.uniform(6, 10) * np.log2(k) / 20) * rng.uniform(0.5, 1, len(k))
    turns = rng.uniform(0, 2 * np.pi, len(k))
    blades = sum(w * np.sin(h * phase + t) for h, w, t in zip(k, weights, turns, strict=True))
    uneven = 1 + rng.uniform(0.05, 0.2) * np.sin(phase / BLADES)
    air = shaped(rng.standard_normal(n), lambda f: decibels(-3, f) * (f > 400), RATE)
    cut = 1 + rng.uniform(0.3, 0.7) * np.sin(phase)
    return uneven * unit(np.asarray(blades)) + rng.uniform(0.2, 0.5) * cut * unit(air)


def car(rng: np.random.Generator, n: int) -> np.ndarray:
    """An engine of four cylinders, and tyres, coming near or going away."""
    firing = log_uniform(rng, 40, 170) * 2 ** (rng.uniform(0.05, 0.3) * wander(rng, n, 0.8, RATE))
    stroke = pulses(firing * 3) - 3 * np.mean(firing) / RATE  # at 48 kHz, as pulses() counts
    fired = stroke * (1 + 0.3 * rng.standard_normal(n))
    box = resonances(rng.uniform(80, 1500, 3), rng.uniform(80, 500, 3), rng.uniform(0.2, 1, 3))
    engine = shaped(fired, lambda f: box(f) * decibels(-3, f), RATE)
    centre = log_uniform(rng, 500, 1300)

    def road(f: np.ndarray) -> np.ndarray:
        return 1 / (1 + (np.log2(np.maximum(f, 20) / centre) / 1.2) ** 4)

    tyres = shaped(rng.standard_normal(n), road, RATE)
    nearing = 1 + rng.uniform(0, 0.7) * wander(rng, n, 0.5, RATE)
    return nearing * (unit(engine) + rng.uniform(0.3, 1.5) * unit(tyres))


def talk(rng: np.random.Generator, n: int) -> np.ndarray:
    """Somebody speaking."""
    return speech(rng, speaker(rng), n)


CLASSES = {"drone": drone, "car": car, "speech": talk}


def site(seed: int, number: int) -> Site:
    """A place by its number."""
    rng = np.random.default_rng([seed, 1, number])
    return Site(
        snr=rng.uniform(-4, 10), level=rng.uniform(-32, -22), noise_tilt=rng.uniform(-6, -2),
        response_tilt=rng.uniform(-1.5, 1.0), colour=4,
    )  # fmt: skip


def render(take: Take, seed: int) -> np.ndarray:
    """(n, 1) float64."""
    n = round(take.seconds * RATE)
    rng = np.random.default_rng([seed, 2, list(CLASSES).index(take.label), take.number])
    wave = unit(CLASSES[take.label](rng, n))
    if rng.uniform() < 0.7:
        other = rng.choice([label for label in CLASSES if label != take.label])
        wave += 10 ** (-rng.uniform(2, 12) / 20) * unit(CLASSES[other](rng, n))
    return recorded(rng, wave, site(seed, take.site), RATE)[:, None]


def plan(seed: int, per_class: int, seconds: Span) -> list[Take]:
    """Every recording of the set; each class is dealt the same places and lengths."""
    rng, takes = np.random.default_rng([seed]), []
    for label in CLASSES:
        places = deal(rng, range(PLACES), per_class)
        for number, length in enumerate(spread(rng, seconds, per_class)):
            name = f"{label}/place-{places[number]}_{number:02d}.wav"
            takes.append(Take(name, label, number, length, RATE, site=places[number]))
    return takes
