"""Randomness as a function: keys, draws and permutations computed from integers, with no state.

`P` positions. Everything broadcasts: a word, a size or a key is one for all positions, or one each.
"""

import numpy as np

try:
    from shards._native import permute as compiled  # type: ignore[import-not-found]
except ImportError:  # not compiled when this was installed
    compiled = None

_ROUNDS = 12  # six are enough for thousands; sizes of 3 to 16 are uneven below twelve
_CHUNK = 1 << 15  # positions at a time: many for a call of numpy's, few for the L2 cache
_SPREAD = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio
_BITS = 0xFFFFFFFFFFFFFFFF


def mix(words: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser that spreads every input bit over all output bits.

    The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, OOPSLA 2014). Shape: (P,) uint64 -> (P,) uint64.
    """
    z = np.asarray(words, np.uint64) + np.uint64(_SPREAD)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mix_one(word: int) -> int:
    """`mix` of one word by Python's own integers: for so few numpy takes twenty times as long."""
    z = (word + _SPREAD) & _BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _BITS
    return z ^ (z >> 31)


def key(*words: int | np.ndarray) -> np.ndarray:
    """64-bit keys from several integers, each of which changes all of it.

    Shape: integers, or (P,) arrays of them -> (1,) or (P,) uint64.
    """
    first = 0
    while first < len(words) and isinstance(words[first], int):
        first += 1
    state = np.array([key_one(*words[:first])], np.uint64)  # type: ignore[arg-type]
    for word in words[first:]:
        bits = word & _BITS if isinstance(word, int) else word
        state = mix(state ^ np.atleast_1d(bits).astype(np.uint64))
    return state


def key_one(*words: int) -> int:
    """The key of integers alone."""
    state = 0
    for word in words:
        state = mix_one(state ^ (word & _BITS))
    return state


def uniform(words: tuple[int, ...], places: np.ndarray, draws: int) -> np.ndarray:
    """`draws` numbers in [0, 1) a place, a function of `words`, the place and the draw alone.

    Shape: (P,) -> (P, draws) float64.
    """
    rows = mix(key(*words) ^ np.asarray(places).astype(np.uint64))
    cells = mix(rows[:, None] ^ mix(np.arange(draws, dtype=np.uint64))[None, :])
    return (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53


#: Odd numbers; with the upper half of its products a key schedules its rounds.
_MULTIPLIERS = mix(np.arange(2 * _ROUNDS, dtype=np.uint64)) | np.uint64(1)


def permute(positions: np.ndarray, n: int | np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A keyed bijection of 0 .. n-1: the images of `positions` under the permutation of `keys`.

    A generalised Feistel network over a x b >= n, both about the root of n, that adds modulo a and
    b in turn and is walked until it falls inside 0 .. n-1, which is seldom more than once (Black,
    Rogaway: Ciphers with arbitrary finite domains, CT-RSA 2002). In words of 32 bits where n fits.
    Shape: (P,), n and keys () or (P,) -> (P,) int64.
    """
    sizes, keys = np.atleast_1d(n), np.atleast_1d(keys)
    assert not len(positions) or sizes.min() > 0, "nothing stands in an empty order"
    wide = sizes.max(initial=0) >= 2**32
    images = np.empty(len(positions), np.int64)
    if compiled is not None and not wide:
        counts = (np.ascontiguousarray(x, np.int64) for x in (positions, sizes))
        compiled(*counts, np.ascontiguousarray(keys, np.uint64), _MULTIPLIERS, images)
        return images
    for first in range(0, len(positions), _CHUNK):
        part = slice(first, first + _CHUNK)
        some, their = (x if len(x) == 1 else x[part] for x in (sizes, keys))
        images[part] = _walk(positions[part], some, their, np.uint64 if wide else np.uint32)
    return images


def _walk(positions: np.ndarray, n: np.ndarray, keys: np.ndarray, word: type) -> np.ndarray:
    n = n.astype(word)
    images = _encipher(positions.astype(word), n, keys)
    outside = np.flatnonzero(images >= n)
    while len(outside):
        some = (x if len(x) == 1 else x[outside] for x in (n, keys))
        images[outside] = _encipher(images[outside], *some)
        outside = outside[images[outside] >= (n if len(n) == 1 else n[outside])]
    return images


def _encipher(words: np.ndarray, n: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One pass of the network. The round function is a keyed multiply, xor-shift, multiply."""
    word = words.dtype.type
    half = word(4 * words.dtype.itemsize)  # bits of a word that a part of the domain may take
    a = np.ceil(np.sqrt(n)).astype(word)
    b = (n - word(1)) // a + word(1)
    left = words // b
    right = words - left * b
    turns = ((keys * _MULTIPLIERS[:, None]) >> np.uint64(32)).astype(word)
    for added, factor in zip(turns[::2], turns[1::2] | word(1), strict=True):
        h = right + added
        h *= factor
        h ^= h >> (half - word(1))
        h *= word(_SPREAD & (2 ** (2 * int(half)) - 1))
        h >>= half
        h *= a
        h >>= half
        h += left
        left, right = right, np.minimum(h, h - a)  # h mod a, below 2a: the other wraps around
        a, b = b, a
    left *= b
    left += right
    return left
