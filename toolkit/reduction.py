"""The one collective of a step: gradients, batch norm's statistics, the loss, and what ranks wish.

All of it travels in one flat buffer, so that whatever one rank has met (a signal, no memory left)
every rank knows before the optimiser moves. `A` micro-steps on each of `R` ranks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from toolkit.models.batchnorm import fold_in, grouped_norms, last_statistics
from toolkit.world import World, sharding


class Buffer(NamedTuple):
    """What travels, and views of its parts: to make them takes long."""

    flat: torch.Tensor
    parts: list[torch.Tensor]


class Reduction:
    """Sums over the micro-steps and ranks of one optimiser step.

    Where the model is spread (ZeRO, FSDP) its gradients travel by themselves. With `exact` every
    micro-step is a leaf of one binary tree over the global batch, whoever computes it: A and R are
    powers of two, and the sum is the same bits for every A x R of one product.
    """

    def __init__(self, module: nn.Module, world: World, extras: int, exact: bool = False):
        """`extras` numbers travel with the rest."""
        self.world, self.exact = world, exact
        self.norms = grouped_norms(module)
        travel = (exact or world.size > 1) and not sharding()  # alone, they stay where they are
        self.parameters = [p for p in module.parameters() if travel and p.requires_grad]
        self._seen = last_statistics(self.norms)  # in the layers, of a micro-step
        self._held = [torch.zeros_like(s) for s in self._seen]  # their sums since the last `add`
        self._forwards = 0
        tensors = [*self.parameters, *self._held]
        self.sizes = [*(t.numel() for t in tensors), extras]
        self._free: list[Buffer] = []
        self._sums: list[tuple[int, Buffer]] = []  # height in the tree, sum: highest first
        self._sent = self._new()  # before anything else can take the memory
        self.alone = world.size == 1 and not exact  # then nothing has to travel, nor to be copied
        self._spare = [torch.zeros_like(s) for s in self._seen if self.alone]
        self._extras: list[float] = []

    def hold(self) -> None:
        """Take up what batch norm's layers have seen in a micro-step."""
        self._forwards += 1
        if self._seen:
            torch._foreach_add_(self._held, self._seen)
            torch._foreach_zero_(self._seen)  # the next forward weighs it by 0: not so NaN

    def add(self, loss: torch.Tensor, others: Sequence[float] = (), given_up: bool = False) -> None:
        """Take the model's gradients, what was held, and as extras loss and others, as one summand.

        Where memory ran out they are `given_up`: zeros, so that the other ranks do not wait.
        """
        if self.alone:
            self._extras = [float(loss), *others]
            self._held, self._spare = self._spare, self._held
            self._clear()
            return
        if given_up:  # with the leaves before it
            self._free += [buffer for _, buffer in self._sums]
            self._sums = []
        height, begun = 0, bool(self._sums) and not self._sums[-1][0]
        if begun:  # by the leaf before this one: added there, a copy is saved
            height, buffer = 1, self._sums.pop()[1]
        else:
            buffer = self._free.pop() if self._free else self._new()
            buffer.parts[-1].zero_()
        *parts, last = buffer.parts
        if given_up:
            buffer.flat.zero_()
        elif parts:
            here = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            take = torch._foreach_add_ if begun else torch._foreach_copy_
            take(parts, [*here, *self._held])
        last[0] += loss.float()
        if any(others):
            last[1:] += torch.tensor(others, device=last.device)
        self._clear()
        for p in self.parameters:
            p.grad = None
        while self._sums and self._sums[-1][0] == height:
            _, lower = self._sums.pop()
            lower.flat.add_(buffer.flat)
            self._free.append(buffer)
            buffer, height = lower, height + 1
        self._sums.append((height, buffer))

    def total(self) -> list[float]:
        """Sum over ranks; the extras' sums. All else is given out by `give` and `fold_in`."""
        self._summands, self._forwards = self._forwards * self.world.size, 0
        if self.alone:
            return self._extras
        (_, self._sent), *rest = self._sums
        assert not rest, "the summands of a rank are a power of two"
        if self.world.size > 1 and self.exact:
            self._sent = self._double(self._sent)
        elif self.world.size > 1:
            dist.all_reduce(self._sent.flat)
        self._free.append(self._sent)
        self._sums = []
        return self._sent.parts[-1].tolist()

    def give(self) -> None:
        """Give the parameters their gradients."""
        for p, gradient in zip(self.parameters, self._sent.parts, strict=False):
            p.grad = gradient

    def fold_in(self, share: float | None = None) -> None:
        """Give batch norm's layers the means over all forwards, to hold `share` of them."""
        means = self._spare if self.alone else self._sent.parts[len(self.parameters) : -1]
        if means:
            torch._foreach_div_(means, self._summands)
            fold_in(self.norms, means, share)

    def forget(self) -> None:
        """Forget what batch norm's layers have seen since the last `add`."""
        self._forwards = 0
        self._clear()

    def _clear(self) -> None:
        if self._seen:
            torch._foreach_zero_([*self._held, *self._seen])

    def _double(self, mine: Buffer) -> Buffer:
        """Recursive doubling: ranks meet in the tree's order, and a + b is b + a bit for bit."""
        distance, other = 1, self._free.pop() if self._free else self._new()
        while distance < self.world.size:
            partner = self.world.rank ^ distance
            there = [(dist.isend, mine.flat), (dist.irecv, other.flat)]
            for work in dist.batch_isend_irecv([dist.P2POp(*w, partner) for w in there]):
                work.wait()
            mine.flat.add_(other.flat)
            distance *= 2
        self._free.append(other)
        return mine

    def _new(self) -> Buffer:
        """A gradient's elements lie as its parameter's do."""
        flat = torch.empty(sum(self.sizes), device=self.world.device)
        parts = list(flat.split(self.sizes))
        for i, p in enumerate(self.parameters):
            parts[i] = parts[i].as_strided(p.shape, p.stride(), parts[i].storage_offset())
        return Buffer(flat, parts)
