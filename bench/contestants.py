"""Who takes the steps in bench/trainer.py: our training, a bare loop, and those of others.

Each takes the folder of a shard set, and calls `pause` at the beginning of each step.
"""

import io
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from shards.build import build as build_set
from shards.index import open_set
from shards.loader import Loader
from shards.order import Order, plan_batch
from toolkit import loop, models
from toolkit.augment import Transform
from toolkit.config import parse
from toolkit.models.batchnorm import GroupedBatchNorm2d, fold_in, grouped_norms, last_statistics
from toolkit.optim import learning_rate, make_optimizer, set_rate
from toolkit.precision import arrange
from toolkit.schema import ModelConfig, OptimConfig, TrainConfig
from toolkit.step import Stepper
from toolkit.world import World

BATCH, CLASSES, STEPS = 32, 10, 10**6
CPU = torch.device("cpu")
Pause = Callable[[], None]


class Nothing(nn.Module):
    """A model of nearly no work."""

    smallest = (1, 1)

    def __init__(self, n_classes: int, *_: Any, **__: Any):
        super().__init__()
        self.head = nn.Linear(1, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x[:, 0, 0, :1])


def wavefold(shards: str, model: str, *, pause: Pause, **train: Any) -> None:
    """`fit`, as train.py calls it, in an epoch without an end."""
    models.REGISTRY["nothing"] = Nothing
    step = Stepper.__call__

    def paused(stepper: Stepper, *words: Any) -> Any:
        pause()
        return step(stepper, *words)

    Stepper.__call__ = paused  # type: ignore[method-assign]
    values = {
        "run": {"name": "bench"},
        "data": {"shards": shards, "protocol": "kfold", "samples_per_epoch": STEPS * BATCH},
        "model": {"name": model},
        "train": {"batch_size": BATCH, **train},
    }
    loop.fit(parse(values))


def tensors(shards: str) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], Transform]:
    """Training batches that stay in memory, and what standardises them."""
    found = open_set(Path(shards))
    order = Order(len(found), BATCH, 0)
    loader = Loader(found, np.arange(len(found)), order, plan_batch(BATCH, None, 1), 0, CPU)
    kept = [(b.x.clone(), b.y.clone()) for [b] in islice(loader.steps(0, 8), 8)]
    bands = found.shape[0]
    return kept, Transform(np.full(bands, -40, np.float32), np.full(bands, 15, np.float32), CPU)


def made(shards: str, name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimiser, both as ours are."""
    models.REGISTRY["nothing"] = Nothing
    torch.manual_seed(0)
    model = models.build(ModelConfig(name=name), CLASSES, open_set(Path(shards)).shape)
    model = arrange(model, TrainConfig(), World(0, 1, CPU))
    return model, make_optimizer(model, OptimConfig())


def bare(shards: str, name: str, whole: bool = True, *, pause: Pause) -> None:
    """A PyTorch loop with nothing in it but the step; not `whole`: forward and backward alone."""
    (batches, transform), (model, optimizer) = tensors(shards), made(shards, name)
    config, norms = OptimConfig(), grouped_norms(model)
    for step, (x, y) in enumerate(cycle(batches)):
        pause()
        F.cross_entropy(model(transform(x)), y).backward()
        if whole:
            set_rate(optimizer, learning_rate(config, step, STEPS, STEPS))
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            if norms:
                fold_in(norms, last_statistics(norms))
        optimizer.zero_grad()


def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """The same rates, as schedulers of torch give them."""
    config = OptimConfig(lr=1.0)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(config, step, STEPS, STEPS)
    )


class InTurn(IterableDataset):  # type: ignore[type-arg]
    """Batches in memory, one after the other."""

    def __init__(self, batches: list[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return cycle(self.batches)


def lightning(shards: str, name: str, *, pause: Pause) -> None:
    import lightning as L
    from lightning.pytorch.loggers import CSVLogger

    batches, transform = tensors(shards)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.made = made(shards, name)
            self.norms = grouped_norms(self.model)

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            loss = F.cross_entropy(self.model(transform(batch[0])), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            rates = {"scheduler": scheduler(self.made), "interval": "step"}
            return {"optimizer": self.made, "lr_scheduler": rates}

        def on_train_batch_start(self, batch: Any, number: int) -> None:
            pause()

        def on_train_batch_end(self, *words: Any) -> None:
            fold_in(self.norms, last_statistics(self.norms))

    L.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, gradient_clip_val=1.0, log_every_n_steps=10,
        logger=CSVLogger("."), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), DataLoader(InTurn(batches), batch_size=None))  # fmt: skip


def transformers(shards: str, name: str, *, pause: Pause) -> None:
    import transformers as hf

    (batches, transform), (model, optimizer) = tensors(shards), made(shards, name)
    norms = grouped_norms(model)

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": F.cross_entropy(self.model(transform(x)), labels)}

    class Callback(hf.TrainerCallback):
        def on_step_begin(self, *words: Any, **_: Any) -> None:
            pause()

        def on_step_end(self, *words: Any, **_: Any) -> None:
            fold_in(norms, last_statistics(norms))

    arguments = hf.TrainingArguments(
        ".", per_device_train_batch_size=1, max_steps=STEPS, logging_steps=10, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True, max_grad_norm=1.0,
    )  # fmt: skip
    hf.Trainer(
        Module(), arguments, lambda items: items[0],
        InTurn([{"x": x, "labels": y} for x, y in batches]),
        optimizers=(optimizer, scheduler(optimizer)), callbacks=[Callback()],
    ).train()  # fmt: skip


def stock(shards: str, tars: list[str], workers: int = 0, *, pause: Pause) -> None:
    """What the documentation of accelerate and webdataset shows; without tars: out of memory."""
    import accelerate
    import webdataset as wds

    accelerator = accelerate.Accelerator(cpu=True)
    model, _ = made(shards, "cnn_small")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupedBatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(len(child.weight)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model, optimizer, rates = accelerator.prepare(model, optimizer, scheduler(optimizer))
    if tars:
        data = wds.WebDataset(tars, shardshuffle=100).shuffle(1000).decode()
        batches = DataLoader(data.to_tuple("npy", "cls").batched(BATCH), None, num_workers=workers)
    else:
        kept, _ = tensors(shards)
        batches = InTurn([((x.float() + 40) / 15, y) for x, y in kept])
    while True:
        for x, y in batches:
            pause()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(torch.as_tensor(x)[:, None]), torch.as_tensor(y))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            loss.item()


def noise(folder: Path, count: int, seconds: float, folds: int = 2, **mel: Any) -> str:
    """A shard set of noise, ten classes."""
    random = np.random.default_rng(0)
    for n in range(count):
        file = folder / "audio" / str(n % CLASSES) / f"{n}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, 0.1 * random.standard_normal(int(seconds * 16000)), 16000)
    words = {"sample_rate": 16000, "segment_seconds": seconds, "workers": 1}
    build_set(str(folder / "audio"), str(folder / "set"), folds=folds, **words, **mel)
    return str(folder / "set")


def librosa_like(shards: str, folder: Path) -> list[str]:
    """The samples of a set as a WebDataset of standardised float32."""
    import webdataset as wds

    folder.mkdir()
    for n, (x, y) in enumerate(tensors(shards)[0] * 4):
        with wds.TarWriter(str(folder / f"{n:04d}.tar")) as tar:
            for i, (sample, label) in enumerate(zip((x.float() + 40) / 15, y, strict=True)):
                content = io.BytesIO()
                np.save(content, sample.numpy())
                key = f"{n:04d}{i:04d}"
                tar.write({"__key__": key, "npy": content.getvalue(), "cls": int(label)})
    return sorted(str(tar) for tar in folder.glob("*.tar"))
