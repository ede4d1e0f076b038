"""What the kinds of made-up audio share: a recording to be made, and the place it is made at."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from shards.durable import write
from shards.sources.sounds import decibels, shaped, unit

Value = TypeVar("Value")
Span: TypeAlias = tuple[float, float]

LOWEST = 40  # Hz, that a microphone hears


@dataclass(frozen=True)
class Take:
    """One recording to be made. `name` is its path inside the folder; `group` and `split` go into
    the manifest of a kind that has one; `site` and `attack` are what its kind makes of them."""

    name: str
    label: str
    number: int
    seconds: float
    sample_rate: int
    channels: int = 1
    site: int = 0
    group: str = ""
    split: str = ""
    attack: str = ""


def store(file: Path, wave: np.ndarray, rate: int) -> None:
    """Write a recording, 16 bit; by way of memory: libsndfile has no error for a full disk."""
    import soundfile

    packed = io.BytesIO()
    soundfile.write(packed, wave, rate, subtype="PCM_16", format=file.suffix[1:].upper())
    write(file, packed.getvalue())


@dataclass(frozen=True)
class Site:
    """Where recordings are made; dB, dBFS, dB an octave, seconds to 60 dB less, and the deviation
    of an octave's gain, dB."""

    snr: float
    level: float
    noise_tilt: float
    response_tilt: float
    reverberation: float = 0.0
    colour: float = 0.0


def deal(rng: np.random.Generator, values: Sequence[Value], count: int) -> list[Value]:
    """Each value equally often, as far as `count` allows, in random order."""
    return [values[i % len(values)] for i in rng.permutation(count)]


def spread(rng: np.random.Generator, span: Span, count: int) -> list[float]:
    """`count` lengths, evenly over a span, in random order."""
    return np.linspace(*span, count)[rng.permutation(count)].tolist()


def recorded(rng: np.random.Generator, wave: np.ndarray, site: Site, rate: int) -> np.ndarray:
    """(n,) `wave` as it is heard at a site: its echo, colour, noise, and a level around its own."""
    if site.reverberation:
        wave = wave + echo(rng, wave, site.reverberation, rate)
    colours = rng.normal(0, site.colour, 10)

    def response(f: np.ndarray) -> np.ndarray:
        even = decibels(site.response_tilt, f) * (f > LOWEST)
        return even * 10 ** (np.interp(np.log2(f + 20), np.arange(5, 15), colours) / 20)

    def floor_response(f: np.ndarray) -> np.ndarray:
        return decibels(site.noise_tilt, f) * (f > LOWEST)

    heard = unit(shaped(wave, response, rate))
    hiss = unit(shaped(rng.standard_normal(len(wave)), floor_response, rate))
    floor = 10 ** (-(site.snr + rng.uniform(-2, 2)) / 20)
    return unit(heard + floor * hiss) * 10 ** ((site.level + rng.uniform(-3, 3)) / 20)


def echo(rng: np.random.Generator, wave: np.ndarray, seconds: float, rate: int) -> np.ndarray:
    """What a room adds: noise that falls by 60 dB in `seconds`, at a third of the power."""
    from scipy.signal import oaconvolve

    t = np.arange(round(seconds * rate)) / rate
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / seconds)
    added: Any = oaconvolve(wave, tail / np.sqrt(3 * np.sum(tail**2)))[: len(wave)]
    return np.asarray(added)
