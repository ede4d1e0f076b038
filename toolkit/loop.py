"""fit(): the one training loop, read from top to bottom."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file

from shards.feed import Reading
from shards.index import ShardSet
from shards.loader import Loader
from shards.order import BatchPlan, plan_batch
from shards.selection import Selection
from toolkit import exact, history, lock, track
from toolkit.augment import Augment, Transform
from toolkit.checkpoint import resumes
from toolkit.claim import claim
from toolkit.data import open_parts
from toolkit.evaluate import log_probabilities
from toolkit.guards import Guard
from toolkit.history import History
from toolkit.losses import make_loss
from toolkit.models import build
from toolkit.models.transfer import prepare
from toolkit.optim import learning_rate, make_optimizer
from toolkit.precision import arrange
from toolkit.report import write_fold
from toolkit.saver import Saver
from toolkit.schema import Config
from toolkit.speed import Meter, profiled, progress_bar
from toolkit.step import Stepper
from toolkit.strategy import Strategy
from toolkit.validation import judged, notes, score
from toolkit.watch import at
from toolkit.world import World, start

log = logging.getLogger(__name__)


@lock.releasing()
def fit(config: Config) -> dict[str, Any]:
    """Train what `config` says, or go on with it; returns the test part's scores (scores.json)."""
    train = config.train

    # World: the processes of this launch.
    accelerator, world = start(train.precision, train.threads, train.timeout)
    exact.prepare(train, world)
    folder = claim(config, world)

    # Data: which samples, in which order, spread over ranks and micro-steps.
    shard_set, parts, order, mean, std = open_parts(config)
    history.check(config, shard_set, parts["val"])
    plan = plan_batch(train.batch_size, train.microbatch, world.size, config.model.norm_batch)
    per_epoch = order.steps_per_epoch
    total = per_epoch * train.epochs
    target = min(total, train.max_steps or total)
    data = config.data
    reading = Reading(data.threads, data.check, data.resident, world.on_this_node)
    loader = Loader(shard_set, parts["train"], order, plan, world.rank, world.device, reading)
    transform = Transform.of(config, mean, std, world.device)
    augment = Augment(config.augment, shard_set, transform, train.seed, config.model.norm_batch)

    # Model and optimiser.
    strategy = make_model(config, shard_set, accelerator, world, plan, folder)
    stepper = Stepper(strategy, augment, config, plan, world, make_loss(config, shard_set, parts))

    def evaluate(numbers: Selection) -> np.ndarray:
        return log_probabilities(strategy.model, transform, shard_set, numbers, world,
                                 stepper.microbatch, reading, stepper.loss.link)  # fmt: skip

    def settle(step: int) -> None:
        first = max(0, step - config.model.norm_steps)
        again = Loader(shard_set, parts["train"], order, plan, world.rank, world.device,
                       replace(reading, resident="none"))  # fmt: skip
        stepper.settle(first + 1, again.steps(first, step))

    # Run: what is in it, and where it stopped.
    track.open_run(config, world)
    accelerator.wait_for_everyone()
    saver = Saver(folder, strategy, shard_set, train, world, plan, order, target)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "history": []}
    state |= {"loss_sum": 0.0, "losses": 0}  # of the epoch so far
    state |= saver.restore()
    stepper.scale.load(state)  # fp16's loss scale
    past = History(state["history"], config)  # and what it decides: best epoch, plateau, early end
    target = state["step"] if past.stopped else target
    finished = broadcast_object_list([track.finished(folder, target)])[0]
    if finished:
        log.info("%s is finished; --train.resume=never trains it anew", folder)
        accelerator.end_training()
        return finished
    metrics = track.Metrics(folder, config, state["step"], world.is_main)
    if world.is_main:
        (folder / "scores.json").unlink(missing_ok=True)  # of a run with fewer steps
        track.announce(config, world, shard_set, parts, plan, state["step"], target)
        track.write_model(folder, config, shard_set, mean, std)
    saver.catch_up(state)  # with what a kill has left undone after the checkpoint
    loss_sum, losses = state["loss_sum"], state["losses"]
    begun = time.perf_counter() - state["seconds"]  # of training, breaks left out
    guard = Guard(config, stepper, shard_set, metrics)
    meter = Meter(config, shard_set, world)
    bar = progress_bar(world, train.batch_size, state["step"], target)
    steps = loader.steps(state["step"], target)
    if train.profile and world.is_main:
        steps = profiled(steps, target - state["step"], folder)

    # Loop: one pass is one optimiser step over one global batch.
    for step, batches in enumerate(steps, state["step"] + 1):
        moved = step - 1 - stepper.scale.skipped  # steps that fp16 skips do not move the schedule
        rate = learning_rate(config.optim, moved, total, per_epoch, past.drops)
        taken = stepper(batches, step, rate, saver.wishes())  # ranks agree on what any wishes
        if taken.finite:
            loss_sum, losses = loss_sum + taken.loss, losses + 1
        bar.update(train.batch_size)
        epoch, ends = -(-step // per_epoch), step % per_epoch == 0 or step == target
        seconds, samples = round(time.perf_counter() - begun, 3), step * train.batch_size
        now = {"step": step, "epoch": epoch, "seconds": seconds, "samples": samples}
        guard(taken, batches, now)  # ends the training after too many that are not finite
        if taken.finite and step % train.log_every == 0:
            norm = None if taken.skipped else taken.norm
            metrics.write("train", **now, loss=taken.loss, lr=rate, grad_norm=norm,
                          **stepper.scale.figures(), **meter.figures(loader))  # fmt: skip

        # Evaluate: the validation part chooses the epoch; where there is none, nothing is chosen.
        if ends:
            epoch_loss = loss_sum / max(losses, 1)
            if step % per_epoch == 0:  # a dry run may stop, and go on, inside an epoch
                loss_sum, losses = 0.0, 0
            metrics.write("epoch", **now, train_loss=epoch_loss)
            result = {}
            if config.model.norm_steps:
                with strategy.averaged():
                    settle(step)
            if len(parts["val"]):
                with strategy.averaged():
                    found = evaluate(parts["val"])
                result = score(config, shard_set, parts["val"][:], found)
                metrics.write("eval", part="val", **now, **track.plain(result))
                if step % per_epoch == 0:  # a dry run that ends inside an epoch decides nothing
                    past.add(result, step, epoch, world.device)
            if world.is_main:
                bar.clear()
                track.tell_epoch(now, train, epoch_loss, result, past.stopped)

        # Save: whole or not at all, and never half an epoch behind.
        if saver.due(step, ends, taken.asked):
            at("save, step", step)
            state |= {"step": step, "seconds": seconds, "loss_sum": loss_sum, "losses": losses}
            saver.save(state | stepper.scale.state(), 0 if step % per_epoch else epoch)
        if past.stopped or saver.stopping:
            break

    # Score: the test part, once, by the chosen weights or, where nothing is chosen, the last ones.
    bar.close()
    saver.close()  # where a signal came, the process ends here
    chosen = past.best or {"step": state["step"], "epoch": -(-state["step"] // per_epoch)}
    strategy.load_weights(load_file(folder / "best.safetensors"))
    said = {p: evaluate(parts[p]) for p in judged(config, shard_set, parts)}
    at("report")
    result = {}
    if world.is_main:
        header = track.header(config, shard_set, world, chosen, state, past.stopped)
        header |= notes(config, shard_set, parts, said)
        result = write_fold(folder, shard_set, parts["test"][:], said["test"], header)
        metrics.close(result)
        log.info("%s", track.closing(folder, result))
    accelerator.wait_for_everyone()  # a rank that leaves while another writes takes it along
    accelerator.end_training()
    return result


def make_model(
    config: Config,
    shard_set: ShardSet,
    accelerator: Accelerator,
    world: World,
    plan: BatchPlan,
    folder: Path | None = None,
) -> Strategy:
    """The model with the weights that it begins with, its optimiser, and the average of its weights
    if there is one, as this launch spreads them; where `folder`, the run's, has a checkpoint, fresh
    weights in the place of those."""
    torch.manual_seed(config.train.seed)
    shape, settings = config.input_shape(shard_set.shape), config.model
    if folder and resumes(folder, config.train.resume):  # what it began with may be gone
        settings = replace(settings, init_from=None, pretrained=False)
    model = build(settings, len(shard_set.class_names), shape)
    prepare(model, settings, shard_set.class_names)
    model = arrange(model, config.train, world)
    optimizer = make_optimizer(model, config.optim)
    return Strategy(accelerator, world, model, optimizer, plan, config.optim)
