"""Every sample counted exactly once, on any number of ranks. `N` samples, `K` classes."""

import numpy as np
import torch
from accelerate.utils import gather
from torch import nn

from shards.feed import Reading
from shards.index import ShardSet
from shards.loader import evaluation_batches
from shards.selection import Selection
from toolkit.augment import Transform
from toolkit.losses import log_probabilities as read_logits
from toolkit.strategy import bare
from toolkit.watch import at
from toolkit.world import World


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    transform: Transform,
    shard_set: ShardSet,
    numbers: np.ndarray | Selection,
    world: World,
    batch_size: int,
    reading: Reading = Reading(),  # noqa: B008
    link: str = "softmax",
) -> np.ndarray:
    """What the model says of the samples `numbers`, in their order, on every rank.

    Each rank computes a contiguous share in as many batches as any other, padded at the end; what
    it found travels with the sample's place, -1 for padding. So uneven parts can hang nothing, and
    the result is a function of the set alone. `link` is that of the Loss.
    Shape: (N,) -> (N, K) float64.
    """
    module = bare(model)  # keeps the autocast; an engine would count a step
    module.eval()
    found = [torch.zeros(0, len(shard_set.class_names), dtype=torch.float64, device=world.device)]
    places = [np.zeros(0, np.int64)]
    mine = evaluation_batches(
        shard_set, numbers, batch_size, world.rank, world.size, world.device, reading
    )
    for n, batch in enumerate(mine):
        at("evaluate, batch", n)
        views = [module(x).double() for x in transform.views(batch.x)]
        found.append(read_logits(torch.stack(views).mean(0), link))
        places.append(batch.places)
    module.train()
    at("collective of evaluate")
    rows = gather(torch.cat(found)).cpu().numpy()
    where = gather(torch.from_numpy(np.concatenate(places)).to(world.device)).cpu().numpy()
    assert np.array_equal(where[where >= 0], np.arange(len(numbers))), "each sample exactly once"
    return rows[where >= 0]
