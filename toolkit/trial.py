"""Training steps without a run: fresh weights, no folder, nothing saved."""

from typing import NamedTuple

from shards.feed import Reading
from shards.index import ShardSet
from shards.loader import Loader
from shards.order import plan_batch
from toolkit.augment import Augment, Transform
from toolkit.data import open_parts
from toolkit.loop import make_model
from toolkit.losses import make_loss
from toolkit.schema import Config
from toolkit.step import Stepper
from toolkit.world import World, start


class Trial(NamedTuple):
    """What a step needs."""

    world: World
    shard_set: ShardSet
    loader: Loader
    stepper: Stepper


def open_trial(config: Config) -> Trial:
    """The training of `config` before its first step."""
    train, group = config.train, config.model.norm_batch
    accelerator, world = start(train.precision, train.threads, train.timeout)
    shard_set, parts, order, mean, std = open_parts(config)
    plan = plan_batch(train.batch_size, train.microbatch, world.size, group)
    reading = Reading(config.data.threads, config.data.check)
    loader = Loader(shard_set, parts["train"], order, plan, world.rank, world.device, reading)
    transform = Transform.of(config, mean, std, world.device)
    augment = Augment(config.augment, shard_set, transform, train.seed, group)
    strategy = make_model(config, shard_set, accelerator, world, plan)
    loss = make_loss(config, shard_set, parts)
    return Trial(world, shard_set, loader, Stepper(strategy, augment, config, plan, world, loss))
