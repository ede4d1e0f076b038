"""Copies in host memory of tensors that a training goes on with.

Forward and backward read weights and moments, and only the optimiser's step changes them. So they
are copied beside the next forward and backward, and the step waits for the copies: lazy copies, as
in DataStates-LLM (Maurya et al., HPDC 2024). On a processor the writer copies; on a GPU a stream of
its own does, and the step waits on the device.
"""

import threading
from collections.abc import Mapping

import torch

from toolkit.strategy import Tensors


class Snapshot:
    """Groups of tensors as they are now, once `take` has returned; one thread takes it.

    The copies go where those of an earlier snapshot were, `old`: fresh memory takes five times the
    processor's time, since the kernel has to find and clear it.
    """

    def __init__(self, groups: Mapping[str, Tensors], old: Mapping[str, Tensors]):
        self._live, self._old, self._copied = groups, old, threading.Event()
        on_gpu = [t.device for group in groups.values() for t in group.values() if t.is_cuda]
        self._stream = torch.cuda.Stream(on_gpu[0]) if on_gpu else None
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(on_gpu[0]))
            with torch.cuda.stream(self._stream):
                self._copies = copies(groups, old)

    def take(self) -> dict[str, Tensors]:
        """The copies."""
        try:
            if self._stream:
                self._stream.synchronize()
            else:
                self._copies = copies(self._live, self._old)
        finally:
            self._live, self._old = {}, {}
            self._copied.set()
        return self._copies

    def hold(self) -> None:
        """Return when the tensors may change."""
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        else:
            self._copied.wait()


def copies(groups: Mapping[str, Tensors], old: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """Contiguous copies in host memory, pinned where they come from a GPU: then in its own time."""
    copied: dict[str, Tensors] = {}
    for part, tensors in groups.items():
        before, copied[part] = old.get(part, {}), {}
        for name, t in tensors.items():
            to = before.get(name)
            if to is None or to.shape != t.shape or to.dtype != t.dtype:
                to = torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda)
            copied[part][name] = to.copy_(t.detach(), non_blocking=True)
    return copied
