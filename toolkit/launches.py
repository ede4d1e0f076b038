"""What a config has to say so that any launch computes the same bits."""

from typing import TYPE_CHECKING

from shards.errors import UserError

if TYPE_CHECKING:
    from toolkit.schema import TrainConfig


def check_launches(train: "TrainConfig", group: int) -> None:
    """Raise a UserError unless every launch can compute the global batch in the same forwards."""
    for name, what in (("microbatch", "samples of a forward"), ("threads", "threads a process")):
        if getattr(train, name) is None:
            raise UserError(f"train.exact=true needs train.{name}: {what}, the same on any launch")
    halves = [train.batch_size >> n for n in range(train.batch_size.bit_length())]
    fitting = [m for n, m in enumerate(halves) if m << n == train.batch_size and m % group == 0]
    if train.microbatch not in fitting:
        fit = ", ".join(map(str, fitting)) or f"none, batch norm takes model.norm_batch={group}"
        raise UserError(
            f"train.exact=true takes a power of two of microbatches, train.batch_size="
            f"{train.batch_size} is none of train.microbatch={train.microbatch}; those that fit: "
            f"{fit}"
        )
