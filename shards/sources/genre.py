"""Made-up music of four styles: chords, basses and drums in their patterns.

A piece is bars of four beats; its parts are (rng, Song) -> (n,) at RATE, at any level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from shards.sources.sounds import log_uniform, shaped, unit, wander
from shards.sources.takes import Site, Span, Take, deal, recorded, spread

RATE = 22050
PER_CLASS = 20
SECONDS = (6.0, 6.0)
BUILD = (
    "--sample_rate=22050 --segment_seconds={seconds:g} --split=0.7,0.15,0.15 "
    "--group_from='[a-z]+-band[0-9]+'"
)
ABOUT = """\
Every sound is synthetic: no recording, no composer. One folder a style; pieces of one band, as in
`jazz-band3_07.wav`, share tempo and key: group by it, --group_from='[a-z]+-band[0-9]+'.
"""
ROOMS = (
    Site(snr=12, level=-18, noise_tilt=-2, response_tilt=0.0, colour=8),
    Site(snr=7, level=-22, noise_tilt=-3, response_tilt=-1.2, colour=8),
    Site(snr=10, level=-20, noise_tilt=-1, response_tilt=1.0, colour=8),
    Site(snr=5, level=-25, noise_tilt=-2, response_tilt=0.5, colour=8),
)
PER_BAND = 2
NEXT_DOOR, FAR = 0.8, (2.0, 9.0)  # how often another style is heard, and by how many dB less

Sound: TypeAlias = Callable[[np.ndarray, float, float], np.ndarray]  # t, Hz, duration


@dataclass(frozen=True)
class Song:
    """What the parts of a piece agree on."""

    n: int  # samples
    beat: float  # seconds
    key: int  # MIDI note
    chords: tuple[int, ...]  # semitones above the key, one a bar

    def places(self, pattern: tuple[float, ...], every: int = 4) -> np.ndarray:
        """Seconds of the beats of a pattern that is repeated `every` so many beats."""
        bars = np.arange(int(self.n / RATE / self.beat / every) + 1) * every
        return ((bars[:, None] + np.array(pattern)) * self.beat).ravel()

    def root(self, seconds: float) -> int:
        """The MIDI note of the chord at a moment."""
        return self.key + self.chords[int(seconds / self.beat / 4) % len(self.chords)]


def notes(
    song: Song, sound: Sound, score: Sequence[tuple[float, float, float, float]]
) -> np.ndarray:
    """(n,) of (start in s, MIDI note, duration in s, loudness)."""
    played: dict[tuple[float, float], np.ndarray] = {}
    out = np.zeros(song.n)
    for start, note, duration, loudness in score:
        if (note, duration) not in played:
            t = np.arange(round(duration * RATE)) / RATE
            played[note, duration] = sound(t, 440 * 2 ** ((note - 69) / 12), duration)
        stretch = out[round(start * RATE) :][: len(played[note, duration])]
        stretch += loudness * played[note, duration][: len(stretch)]
    return out


def timbre(fall: float, attack: float, decay: float, vibrato: float = 0.0) -> Sound:
    """Harmonics that fall by `fall` dB an octave; seconds to rise, and to lose 9 dB."""

    def sound(t: np.ndarray, hertz: float, duration: float) -> np.ndarray:
        k = np.arange(1, 1 + min(24, int(9000 / hertz)))
        bend = vibrato * np.sin(2 * np.pi * 5.5 * t) / (2 * np.pi * 5.5)
        phase = 2 * np.pi * hertz * (t + bend)
        weights = 10 ** (-fall * np.log2(k) / 20)
        shape = np.minimum(t / attack, 1) * np.exp(-t / decay)
        return shape * np.minimum((duration - t) / 0.02, 1) * (np.sin(np.outer(phase, k)) @ weights)

    return sound


def struck(
    rng: np.random.Generator, song: Song, places: np.ndarray, centre: float, decay: float
) -> np.ndarray:
    """(n,) bursts of noise around a frequency, each drummer's own: snares, hats, cymbals."""
    from scipy.signal import oaconvolve

    hits = np.zeros(song.n)
    at = np.round(places * RATE).astype(int)
    at = at[at < song.n]
    hits[at] = rng.uniform(0.6, 1, len(at))
    decay *= log_uniform(rng, 0.6, 1.7)
    t = np.arange(round(5 * decay * RATE)) / RATE
    centre, octaves = centre * log_uniform(rng, 0.6, 1.7), rng.uniform(0.5, 1.2)
    burst = shaped(
        rng.standard_normal(len(t)),
        lambda f: 1 / (1 + (np.log2(np.maximum(f, 20) / centre) / octaves) ** 4), RATE,
    )  # fmt: skip
    return np.asarray(oaconvolve(hits, burst * np.exp(-t / decay))[: song.n])


def kick(rng: np.random.Generator, song: Song, places: np.ndarray) -> np.ndarray:
    """(n,) drums whose pitch falls."""
    low = rng.uniform(42, 60)

    def thump(t: np.ndarray, hertz: float, duration: float) -> np.ndarray:
        return np.exp(-t / 0.12) * np.sin(2 * np.pi * (low * t - 4 * np.exp(-t / 0.03)))

    return notes(song, thump, [(at, 0, 0.4, 1) for at in places])


def chords(song: Song, places: np.ndarray, shape: tuple[int, ...], hold: float, sound: Sound,
           above: int = 0) -> np.ndarray:  # fmt: skip
    """(n,) the chord of each bar, of so many semitones above its root, held so many beats."""
    score = [
        (at, song.root(at) + above + step, hold * song.beat, 1) for at in places for step in shape
    ]
    return notes(song, sound, score)


def rock(rng: np.random.Generator, song: Song) -> list[np.ndarray]:
    """Distorted fifths in eighths, a bass below, and a backbeat."""
    eighths = song.places((0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5))
    played = eighths[rng.uniform(size=len(eighths)) < rng.uniform(0.6, 1)]
    guitar = chords(song, played, (0, 7, 12), rng.uniform(0.5, 1), timbre(5, 0.004, 0.8))
    guitar = np.tanh(rng.uniform(1.5, 5) * unit(guitar))
    bass = chords(song, eighths, (0,), 0.5, timbre(7, 0.01, 0.5), -12)
    snare = struck(rng, song, song.places((1, 3)), 1500, 0.07)
    hats = struck(rng, song, eighths, 7000, 0.04)
    return [guitar, 0.7 * unit(bass), drums(rng, kick(rng, song, song.places((0, 2))), snare, hats)]


def jazz(rng: np.random.Generator, song: Song) -> list[np.ndarray]:
    """Seventh chords off the beat, a walking bass, and a ride that swings."""
    swung = rng.uniform(0.6, 0.7)
    comping = song.places((0.0, 1 + swung, 3 + swung))
    piano = chords(
        song, comping[rng.uniform(size=len(comping)) < 0.8], (4, 7, 10, 14),
        rng.uniform(0.4, 1.2), timbre(rng.uniform(7, 10), 0.004, 0.5),
    )  # fmt: skip
    walk = [
        (at, song.root(at) - 12 + float(rng.choice((0, 3, 4, 7, 10))), 0.9 * song.beat, 1)
        for at in song.places((0, 1, 2, 3))
    ]
    bass = notes(song, timbre(9, 0.01, 0.4), walk)
    ride = struck(rng, song, song.places((0, 1, 1 + swung, 2, 3, 3 + swung)), 6500, 0.09)
    brush = struck(rng, song, song.places((1, 3)), 3500, 0.05)
    return [piano, 0.7 * unit(bass), drums(rng, ride, brush)]


def classical(rng: np.random.Generator, song: Song) -> list[np.ndarray]:
    """Strings that swell, and broken chords above them."""
    strings = timbre(rng.uniform(6, 9), rng.uniform(0.08, 0.25), 3.0, 0.01)
    minor = (0, 3, 7) if rng.uniform() < 0.5 else (0, 4, 7)
    held = chords(song, song.places((0,)), (*minor, 12), 4, strings)
    held *= 1 + 0.6 * wander(rng, song.n, 0.4, RATE)
    steps = song.places((0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5))
    broken = [
        (at, song.root(at) + 12 + float(rng.choice((*minor, 12))), song.beat, 1)
        for at in steps[rng.uniform(size=len(steps)) < rng.uniform(0.5, 1)]
    ]
    melody = notes(song, timbre(8, 0.01, 0.6), broken)
    rolls = kick(rng, song, song.places((0,), 8))
    return [held, 0.8 * unit(melody), 0.3 * rng.uniform(0, 1) * unit(rolls)]


def electronic(rng: np.random.Generator, song: Song) -> list[np.ndarray]:
    """Saws in sixteenths that duck under a kick on every beat, hats between."""
    grid = song.places(tuple(np.arange(16) / 4))
    pattern = np.resize(rng.uniform(size=16) < rng.uniform(0.4, 0.8), len(grid))
    saw = timbre(rng.uniform(5, 7), 0.004, 0.25)
    lead = notes(
        song, saw,
        [(at, song.root(at) + 12.0 * rng.integers(0, 2), song.beat / 3, 1) for at in grid[pattern]],
    )  # fmt: skip
    pad = chords(song, song.places((0,)), (0, 3, 7), 4, timbre(6, 0.05, 4.0))
    duck = (np.arange(song.n) / RATE / song.beat) % 1
    pad *= 0.2 + 0.8 * np.clip(2 * duck, 0, 1)
    hats = struck(rng, song, song.places((0.5, 1.5, 2.5, 3.5)), 7000, 0.04)
    beats = kick(rng, song, song.places((0, 1, 2, 3)))
    clap = struck(rng, song, song.places((1, 3)), 2000, 0.06)
    return [lead, 0.7 * unit(pad), drums(rng, beats, hats, 0.7 * clap)]


def drums(rng: np.random.Generator, *parts: np.ndarray) -> np.ndarray:
    """(n,) the parts of a kit, mixed by somebody, now and then far back."""
    mixed = sum(rng.uniform(0.4, 1) * part / max(1e-9, np.abs(part).max()) for part in parts)
    return np.asarray(log_uniform(rng, 0.1, 0.8) * unit(np.asarray(mixed)))


STYLES = {"rock": rock, "jazz": jazz, "classical": classical, "electronic": electronic}
TEMPOS = {"rock": (90, 165), "jazz": (95, 190), "classical": (60, 130), "electronic": (100, 145)}
PROGRESSIONS = ((0, 5, 7, 0), (0, 9, 5, 7), (0, 7, 9, 5), (2, 7, 0, 0), (0, 0, 5, 7))


def render(take: Take, seed: int) -> np.ndarray:
    """(n, 1) float64: a stretch from the midst of a piece, often with another one next door."""
    style, band = list(STYLES).index(take.label), take.number // PER_BAND
    n = round(take.seconds * RATE)
    group = np.random.default_rng([seed, 1, style, band])
    rng = np.random.default_rng([seed, 2, style, take.number])
    beat = 60 / log_uniform(group, *TEMPOS[take.label]) * rng.uniform(0.97, 1.03)
    wave = piece(rng, take.label, n, beat, int(group.integers(45, 57)))
    if rng.uniform() < NEXT_DOOR:
        other = str(rng.choice([name for name in STYLES if name != take.label]))
        beat, key = 60 / log_uniform(rng, *TEMPOS[other]), int(rng.integers(45, 57))
        wave += 10 ** (-rng.uniform(*FAR) / 20) * piece(rng, other, n, beat, key)
    return recorded(rng, wave, ROOMS[take.site], RATE)[:, None]


def piece(rng: np.random.Generator, style: str, n: int, beat: float, key: int) -> np.ndarray:
    """(n,) from the midst of something in a style, at a mean power of 1."""
    skipped = round(rng.uniform(0, 4) * RATE)
    song = Song(skipped + n, beat, key, PROGRESSIONS[rng.integers(len(PROGRESSIONS))])
    first, *others = STYLES[style](rng, song)
    return unit((unit(first) + sum(others))[skipped:])


def plan(seed: int, per_class: int, seconds: Span) -> list[Take]:
    """Every recording of the set; each style is dealt the same rooms and lengths."""
    rng, takes = np.random.default_rng([seed]), []
    for label in STYLES:
        sites = deal(rng, range(len(ROOMS)), per_class)
        for number, length in enumerate(spread(rng, seconds, per_class)):
            name = f"{label}/{label}-band{number // PER_BAND}_{number:02d}.wav"
            takes.append(Take(name, label, number, length, RATE, site=sites[number]))
    return takes
