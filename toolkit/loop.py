"""fit(): the one training loop, read from top to bottom."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from shards.feed import Reading
from shards.index import ShardSet
from shards.loader import Loader
from shards.order import BatchPlan, plan_batch
from shards.selection import Selection
from toolkit import checkpoint, exact, history, track
from toolkit.augment import Augment, Transform
from toolkit.data import open_parts
from toolkit.evaluate import log_probabilities
from toolkit.history import History
from toolkit.metrics import scores
from toolkit.models import build
from toolkit.optim import learning_rate, make_optimizer
from toolkit.precision import arrange
from toolkit.report import write_fold
from toolkit.schema import Config
from toolkit.step import Stepper
from toolkit.strategy import Strategy
from toolkit.world import World, start

log = logging.getLogger(__name__)


def fit(config: Config) -> dict[str, Any]:
    """Train what `config` says, or go on with it; returns the test part's scores (scores.json)."""
    train = config.train

    # World: the processes of this launch.
    accelerator, world = start(train.precision, train.threads)
    exact.prepare(train, world)

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
    transform = Transform(mean, std, world.device, config.data.normalize)
    augment = Augment(config.augment, shard_set, transform, train.seed, config.model.norm_batch)

    # Model and optimiser.
    strategy = make_model(config, shard_set, accelerator, world, plan)
    stepper = Stepper(strategy, augment, config, plan, world)

    def evaluate(model: nn.Module, numbers: Selection) -> np.ndarray:
        return log_probabilities(
            model, transform, shard_set, numbers, world, accelerator, stepper.microbatch, reading
        )

    # Run: its folder, and where it stopped.
    folder = track.open_run(config, world)
    accelerator.wait_for_everyone()
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "loss_sum": 0.0, "history": []}
    state |= checkpoint.restore(folder / "checkpoints", strategy) or {}
    stepper.scale.load(state)
    past = History(state["history"], config)
    target = state["step"] if past.stopped else target
    finished = track.finished(folder, target)
    if finished:
        log.info("%s is finished; --train.resume=never trains it anew", folder)
        accelerator.end_training()
        return finished
    metrics = track.Metrics(folder, config, state["step"], world.is_main)
    if world.is_main:
        (folder / "scores.json").unlink(missing_ok=True)  # of a run with fewer steps
        track.announce(config, world, shard_set, parts, plan, state["step"], target)
        track.write_model(folder, config, shard_set, mean, std)
    keep_best(folder, strategy, past, state["step"])
    loss_sum, begun = state["loss_sum"], time.perf_counter() - state["seconds"]
    quiet = not (world.is_main and sys.stderr.isatty())
    bar = tqdm(total=target, initial=state["step"], unit="step", disable=quiet, leave=False)

    # Loop: one pass is one optimiser step over one global batch.
    for step, batches in enumerate(loader.steps(state["step"], target), state["step"] + 1):
        moved = step - 1 - stepper.scale.skipped
        rate = learning_rate(config.optim, moved, total, per_epoch, past.drops)
        taken = stepper(batches, step, rate)
        loss_sum += taken.loss
        bar.update()
        epoch, ends = -(-step // per_epoch), step % per_epoch == 0 or step == target
        seconds, samples = round(time.perf_counter() - begun, 3), step * train.batch_size
        now = {"step": step, "epoch": epoch, "seconds": seconds, "samples": samples}
        if step % train.log_every == 0:
            norm = None if taken.skipped else taken.norm
            metrics.write("train", **now, loss=taken.loss, lr=rate, grad_norm=norm,
                          **stepper.scale.figures(), **loader.figures())  # fmt: skip

        # Evaluate: the validation part chooses the epoch; where there is none, nothing is chosen.
        if ends:
            epoch_loss = loss_sum / ((step - 1) % per_epoch + 1)
            loss_sum *= step % per_epoch != 0  # a dry run may stop, and go on, inside an epoch
            metrics.write("epoch", **now, train_loss=epoch_loss)
            result = {}
            if len(parts["val"]):
                found = evaluate(strategy.judged, parts["val"])
                result = scores(shard_set.rows(parts["val"][:])["label"], found)
                metrics.write("eval", part="val", **now, **track.plain(result))
                if step % per_epoch == 0:  # a dry run that ends inside an epoch decides nothing
                    past.add(result, step, epoch, world.device)
            if world.is_main:
                bar.clear()
                track.tell_epoch(now, train, epoch_loss, result, past.stopped)

        # Save: whole or not at all, and never half an epoch behind.
        if ends or (train.save_every and step % train.save_every == 0):
            state |= {"step": step, "seconds": seconds, "loss_sum": loss_sum}
            state |= stepper.scale.state()
            checkpoint.save(folder / "checkpoints", strategy, state, train.keep_last)
            keep_best(folder, strategy, past, step)
        if past.stopped:
            break

    # Score: the test part, once, by the chosen weights or, where nothing is chosen, the last ones.
    bar.close()
    chosen = past.best or {"step": state["step"], "epoch": -(-state["step"] // per_epoch)}
    if not past.best:
        checkpoint.save_weights(strategy, folder / "best.safetensors")
    accelerator.wait_for_everyone()
    strategy.load_weights(load_file(folder / "best.safetensors"))
    found = evaluate(strategy.model, parts["test"])
    result = {}
    if world.is_main:
        header = track.header(config, shard_set, world, chosen, state, past.stopped)
        result = write_fold(folder, shard_set, parts["test"][:], found, header)
        metrics.close(result)
        log.info("%s", track.closing(folder, result))
    accelerator.wait_for_everyone()  # a rank that leaves while another writes takes it along
    accelerator.end_training()
    return result


def make_model(
    config: Config, shard_set: ShardSet, accelerator: Accelerator, world: World, plan: BatchPlan
) -> Strategy:
    """The model with fresh weights, its optimiser, and the average of its weights if there is one,
    as this launch spreads them."""
    torch.manual_seed(config.train.seed)
    model = build(config.model, len(shard_set.class_names), shard_set.shape)
    model = arrange(model, config.train, world)
    optimizer = make_optimizer(model, config.optim)
    return Strategy(accelerator, world, model, optimizer, plan, config.optim)


def keep_best(folder: Path, strategy: Strategy, past: History, step: int) -> None:
    """Write best.safetensors if the best epoch is the one that ends with `step`.

    After the checkpoint of that step, and again when training goes on from it: a kill between the
    two leaves no best weights but those that the history tells of.
    """
    if past.best and past.best["step"] == step:
        checkpoint.save_weights(strategy, folder / "best.safetensors")
