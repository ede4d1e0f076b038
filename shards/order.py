"""Which sample comes when: pure functions of integers, swept over in the tests.

An epoch is a stretch of one endless sequence of global positions, and a draw (draws.py) says which
sample stands at each of them, position by position. So an order costs no memory, resuming at any
step costs nothing, and a rank asks for its own slice alone. `P` positions.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from shards.draws import Draw, Full
from shards.errors import UserError

_BLOCK = 1 << 15  # positions computed at once: numpy's calls cost as much as thousands of positions


def share(n: int, rank: int, world_size: int) -> range:
    """The contiguous part of 0 .. n-1 that `rank` takes; parts differ in length by one at most."""
    return range(n * rank // world_size, n * (rank + 1) // world_size)


@dataclass(frozen=True, eq=False)
class Order:
    """The order of training: global batches of `n` samples, in epochs of `length` positions.

    An epoch's last batch is made whole by rule: `wrap` fills it from the beginning of the same
    epoch, `drop` leaves its samples out. `draw` says what stands where: by default all n samples
    anew shuffled in each epoch.
    """

    n: int
    batch_size: int
    seed: int
    last: str = "wrap"
    draw: Draw | None = None
    length: int | None = None  #: positions an epoch; None: n

    @cached_property
    def positions(self) -> int:
        """Positions an epoch."""
        return self.n if self.length is None or not self.n else self.length

    @cached_property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        more = self.batch_size - 1 if self.last == "wrap" else 0
        return (self.positions + more) // self.batch_size

    def batch(self, step: int, places: range) -> np.ndarray:
        """Which of the n samples stand at `places` of global batch `step` (counted from the start).

        Steps are computed a block at a time, and the last blocks are kept.
        Shape: (len(places),) int64, not to be written to.
        """
        block, inner = divmod(step, self._steps)
        return self._blocks(block, places)[inner]

    def batches(self, steps: range, places: range) -> np.ndarray:
        """`batch` of several steps at once. Shape: (len(steps), len(places)) int64."""
        epochs, inner = np.divmod(np.arange(steps.start, steps.stop), self.steps_per_epoch)
        inside = inner[:, None] * self.batch_size + np.arange(places.start, places.stop)
        if self.last == "wrap":
            inside %= self.positions
        inside += epochs[:, None] * self.positions
        draw = self.draw or Full(self.n, self.seed)
        return draw(inside.ravel()).reshape(inside.shape)

    def digest(self) -> str:
        """What tells this order from others: its first batch, and the sum of its weights."""
        first = self.batch(0, range(self.batch_size)).tolist()
        words = f"{first} {getattr(self.draw, 'total', 0):.9g}"
        return hashlib.sha256(words.encode()).hexdigest()

    @cached_property
    def _steps(self) -> int:
        """Steps a block."""
        return min(max(1, _BLOCK // self.batch_size), self.steps_per_epoch)

    @cached_property
    def _blocks(self) -> Callable[[int, range], np.ndarray]:
        def block(number: int, places: range) -> np.ndarray:
            first = number * self._steps
            found = self.batches(range(first, first + self._steps), places)
            found.flags.writeable = False
            return found

        return lru_cache(16)(block)


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
