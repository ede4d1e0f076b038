"""Every sample counted exactly once, on any number of ranks. `N` samples, `K` classes."""

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather
from torch import nn

from shards.index import ShardSet
from shards.loader import evaluation_batches
from shards.order import share
from shards.selection import Selection
from toolkit.augment import Transform
from toolkit.strategy import bare
from toolkit.world import World


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    transform: Transform,
    shard_set: ShardSet,
    numbers: np.ndarray | Selection,
    world: World,
    accelerator: Accelerator,
    batch_size: int,
) -> np.ndarray:
    """What the model says of the samples `numbers`, in their order, on every rank.

    Each rank computes a contiguous share; shares are padded to one length, gathered, and cut again,
    so that uneven parts can hang nothing and no sample counts twice. Shape: (N,) -> (N, K) float64.
    """
    module = bare(model)  # its forward keeps the autocast; DDP would synchronise
    module.eval()
    batches = evaluation_batches(
        shard_set, numbers, batch_size, world.rank, world.size, world.device
    )
    rows = [F.log_softmax(module(transform(batch.x)).double(), dim=1) for batch in batches]
    shares = [len(share(len(numbers), rank, world.size)) for rank in range(world.size)]
    for _ in range(-(-max(shares) // batch_size) - len(rows)):
        # Each forward of ZeRO-3 and FSDP gathers weights: all ranks have to do equally many.
        module(torch.zeros(1, 1, *shard_set.shape, device=world.device))
    module.train()
    mine = torch.zeros(
        max(shares), len(shard_set.class_names), dtype=torch.float64, device=world.device
    )
    if rows:
        mine[: shares[world.rank]] = torch.cat(rows)
    gathered = gather(mine).view(world.size, *mine.shape)
    return torch.cat([gathered[rank, :n] for rank, n in enumerate(shares)]).cpu().numpy()
