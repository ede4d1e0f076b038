"""Which sample comes when: pure functions of integers, swept over in the tests.

The order of an epoch is a keyed permutation computed position by position, so it costs no memory,
resuming at any step costs nothing, and a rank asks for its own slice alone. `P` positions.
"""

from dataclasses import dataclass

import numpy as np

from shards.errors import UserError

_ROUNDS = 6


def mix(words: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser that spreads every input bit over all output bits.

    The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, OOPSLA 2014). Shape: (P,) uint64 -> (P,) uint64.
    """
    z = np.asarray(words, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*words: int) -> np.ndarray:
    """One 64-bit key from several integers, each of which changes all of it. Shape: (1,) uint64."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix(state ^ np.array([word & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return state


def uniform(words: tuple[int, ...], places: np.ndarray, draws: int) -> np.ndarray:
    """`draws` numbers in [0, 1) a place, a function of `words`, the place and the draw alone.

    Shape: (P,) -> (P, draws) float64.
    """
    rows = mix(key(*words) ^ np.asarray(places).astype(np.uint64))
    cells = mix(rows[:, None] ^ mix(np.arange(draws, dtype=np.uint64))[None, :])
    return (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: np.ndarray, n: int, *words: int) -> np.ndarray:
    """A keyed bijection of 0 .. n-1: the images of `positions` under the permutation of `words`.

    A Feistel network over the next even power of two, walked until it falls inside 0 .. n-1
    (Black, Rogaway: Ciphers with arbitrary finite domains, CT-RSA 2002). Shape: (P,) -> (P,) int64.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = [key(*words, turn) for turn in range(_ROUNDS)]
    images = np.array(positions, np.uint64)
    outside = np.ones(images.shape, bool)
    while outside.any():
        left, right = images[outside] >> shift, images[outside] & mask
        for turn in keys:
            left, right = right, left ^ (mix(right ^ turn) & mask)
        images[outside] = (left << shift) | right
        outside &= images >= np.uint64(n)
    return images.astype(np.int64)


def share(n: int, rank: int, world_size: int) -> range:
    """The contiguous part of 0 .. n-1 that `rank` takes; parts differ in length by one at most."""
    return range(n * rank // world_size, n * (rank + 1) // world_size)


@dataclass(frozen=True)
class Order:
    """The order of training: `n` samples in shuffled epochs of global batches.

    An epoch's last batch is made whole by rule: `wrap` fills it from the beginning of the same
    epoch, `drop` leaves its samples to the next epochs, which shuffle anew.
    """

    n: int
    batch_size: int
    seed: int
    last: str = "wrap"

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        return -(-self.n // self.batch_size) if self.last == "wrap" else self.n // self.batch_size

    def batch(self, step: int, places: range) -> np.ndarray:
        """Which of the n samples stand at `places` of global batch `step` (counted from the start).

        Shape: (len(places),) int64.
        """
        epoch, inner = divmod(step, self.steps_per_epoch)
        positions = inner * self.batch_size + np.arange(places.start, places.stop)
        return permute(positions % self.n, self.n, self.seed, epoch)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How one global batch is spread over ranks and micro-steps."""

    batch_size: int
    microbatch: int
    world_size: int

    @property
    def per_rank(self) -> int:
        """Samples of a global batch on each rank."""
        return self.batch_size // self.world_size

    @property
    def accumulation(self) -> int:
        """Micro-steps before each optimiser step."""
        return self.per_rank // self.microbatch

    def places(self, rank: int) -> range:
        """The places of the global batch that `rank` computes."""
        return range(rank * self.per_rank, (rank + 1) * self.per_rank)


def plan_batch(
    batch_size: int, microbatch: int | None, world_size: int, norm_batch: int = 1
) -> BatchPlan:
    """Spread a global batch; `microbatch` is the largest forward on one device (None: no limit).

    Each microbatch consists of whole groups of `norm_batch` samples, over which batch norm takes
    its statistics, so that no launch changes the training.

    Raises:
        UserError: the numbers do not divide; names the nearest that do.
    """
    unit = norm_batch * world_size
    if batch_size < 1 or batch_size % unit:
        lower, upper = batch_size // unit * unit, (batch_size // unit + 1) * unit
        near = f"{lower} or {upper}" if lower > 0 else f"{upper}"
        raise UserError(
            f"train.batch_size={batch_size} does not split over {world_size} processes into whole "
            f"groups of model.norm_batch={norm_batch}; nearest: train.batch_size={near}"
        )
    per_rank = batch_size // world_size
    limit = min(microbatch or per_rank, per_rank)
    if limit < norm_batch:
        raise UserError(
            f"train.microbatch={microbatch} is smaller than model.norm_batch={norm_batch}; "
            f"raise it to {norm_batch} or lower model.norm_batch"
        )
    fitting = [m for m in range(norm_batch, limit + 1, norm_batch) if per_rank % m == 0]
    return BatchPlan(batch_size=batch_size, microbatch=fitting[-1], world_size=world_size)
