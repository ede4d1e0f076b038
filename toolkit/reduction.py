"""The one collective of a step: gradients, batch norm's statistics, the loss, and what ranks wish.

All of it travels in one flat buffer, so that whatever one rank has met (a signal, no memory left)
every rank knows before the optimiser moves. `A` micro-steps on each of `R` ranks.
"""

import torch
import torch.distributed as dist
from torch import nn

from toolkit.models.batchnorm import fold_in, grouped_norms, last_statistics
from toolkit.world import World, sharding


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
        self._free: list[torch.Tensor] = []
        self._sums: list[tuple[int, torch.Tensor]] = []  # height in the tree, sum: highest first
        self._sent = self._new()  # before anything else can take the memory

    def hold(self) -> None:
        """Take up what batch norm's layers have seen in a micro-step."""
        self._forwards += 1
        if self._seen:
            torch._foreach_add_(self._held, self._seen)
            torch._foreach_zero_(self._seen)  # the next forward weighs it by 0: not so NaN

    def add(self, extras: torch.Tensor, given_up: bool = False) -> None:
        """Take the model's gradients, what was held, and `extras` (E,), as one summand.

        Where memory ran out they are `given_up`: zeros, so that the other ranks do not wait.
        """
        buffer = self._free.pop() if self._free else self._new()
        *parts, last = self._views(buffer)
        if given_up:
            buffer.zero_()
        elif parts:
            here = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            torch._foreach_copy_(parts, [*here, *self._held])
        last.copy_(extras)
        if self._seen:
            torch._foreach_zero_([*self._held, *self._seen])
        for p in self.parameters:
            p.grad = None
        height = 0
        while self._sums and self._sums[-1][0] == height:
            _, lower = self._sums.pop()
            self._free.append(buffer)
            buffer, height = lower.add_(buffer), height + 1
        self._sums.append((height, buffer))

    def total(self) -> torch.Tensor:
        """Sum over ranks; the extras' sums (E,). All else is given out by `give` and `settle`."""
        (_, self._sent), *rest = self._sums
        assert not rest, "the summands of a rank are a power of two"
        if self.world.size > 1 and self.exact:
            self._sent = self._double(self._sent)
        elif self.world.size > 1:
            dist.all_reduce(self._sent)
        self._free.append(self._sent)
        self._sums, self._summands, self._forwards = [], self._forwards * self.world.size, 0
        return self._views(self._sent)[-1]

    def give(self) -> None:
        """Give the parameters their gradients."""
        for p, gradient in zip(self.parameters, self._views(self._sent), strict=False):
            p.grad = gradient

    def fold_in(self) -> None:
        """Give batch norm's layers the means over all forwards."""
        means = self._views(self._sent)[len(self.parameters) : -1]
        if means:
            torch._foreach_div_(means, self._summands)
            fold_in(self.norms, means)

    def forget(self) -> None:
        """Forget what batch norm's layers have seen since the last `add`."""
        self._forwards = 0
        if self._seen:
            torch._foreach_zero_([*self._held, *self._seen])

    def _double(self, mine: torch.Tensor) -> torch.Tensor:
        """Recursive doubling: ranks meet in the tree's order, and a + b is b + a bit for bit."""
        distance, other = 1, self._free.pop() if self._free else self._new()
        while distance < self.world.size:
            partner = self.world.rank ^ distance
            there = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, other, partner)]
            for work in dist.batch_isend_irecv(there):
                work.wait()
            mine, distance = mine.add_(other), 2 * distance
        self._free.append(other)
        return mine

    def _new(self) -> torch.Tensor:
        return torch.empty(sum(self.sizes), device=self.world.device)

    def _views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The parts of a buffer; a gradient's elements lie as its parameter's do."""
        parts = list(buffer.split(self.sizes))
        for i, p in enumerate(self.parameters):
            parts[i] = parts[i].as_strided(p.shape, p.stride(), parts[i].storage_offset())
        return parts
