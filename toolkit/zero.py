"""DeepSpeed's ZeRO 1 to 3: its configuration, and the state that it flattens and splits."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shards.order import BatchPlan

Tensors = dict[str, Any]  #: tensors by name
Named = Iterable[tuple[str, nn.Parameter]]  #: what is trained


def fill(config: dict[str, Any], plan: BatchPlan, grad_clip: float) -> None:
    """Tell DeepSpeed's configuration what the run's says."""
    config |= {
        "train_batch_size": plan.batch_size,
        "train_micro_batch_size_per_gpu": plan.microbatch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": grad_clip,
    }
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True


@contextmanager
def apart(zero: Any) -> Iterator[None]:
    """Within: ZeRO 3 holds nothing but each rank's own part of the weights, as when it saves."""
    third = hasattr(zero, "fp32_partitioned_groups_flat")
    if third:
        zero.checkpoint_event_prologue()
    yield
    if third:
        zero.checkpoint_event_epilogue()


def offloads(zero: Any) -> bool:
    """Whether DeepSpeed's own optimiser on the processor has replaced ours."""
    return bool(getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False))


def moments(parameters: Named, zero: Any) -> Tensors:
    """The whole state of an optimiser that ZeRO has flattened and split."""
    from deepspeed.utils import safe_get_full_optimizer_state

    entry: Tensors = next(iter(zero.optimizer.state.values()), {})
    if offloads(zero):
        return {}
    link(zero)
    return {
        f"{name}.{key}": (
            safe_get_full_optimizer_state(p, key) if value.ndim else value.clone()
        ).cpu()
        for name, p in parameters
        for key, value in entry.items()
    }


def link(zero: Any) -> None:
    """Let ZeRO 1 and 2 find their state: they look once, when only the first group has one."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def load_moments(parameters: Named, zero: Any, state: dict[str, Tensors]) -> None:
    """The inverse of `moments`, also before the first step, when ZeRO has no state yet."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    third = hasattr(zero, "fp32_partitioned_groups_flat")
    flat = zero.fp32_partitioned_groups_flat if third else zero.single_partition_of_fp32_groups
    for part in flat:
        for key, value in next(iter(state.values())).items():
            whole = value.ndim == 0  # the number of steps, alike for all
            zero.optimizer.state[part][key] = (
                value.to(part.device, copy=True) if whole else torch.zeros_like(part)
            )
    link(zero)
    rank = torch.distributed.get_rank()
    tensors = (
        (p, key, value)
        for name, p in parameters
        for key, value in state[name].items()
        if value.ndim
    )
    p: Any
    for p, key, value in tensors:
        if third:  # split evenly over ranks, the last part padded
            size = p.ds_tensor.numel()
            mine = value.flatten()[rank * size : (rank + 1) * size]
            mine = nn.functional.pad(mine, (0, size - len(mine)))
            safe_set_local_optimizer_state(p, mine, key)
        else:
            safe_set_full_optimizer_state(p, value, key)
