"""The schema of a run: sections of keys, and their defaults."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    name: str  #: the run's folder below `dir`
    dir: str = "runs"  #: where runs live
    part: str = ""  #: folders between the run's and the fold's, as launch.tasks names them


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    shards: str | list[Any]  #: a folder, or s3://, https://, hf://; or [{path: A, weight: 2}, ...]
    cache_gb: float = 50.0  #: 10^9 bytes of shards from an address that are kept on this machine
    stage: str | None = None  #: a folder on the node's own disk to copy the shards to, as $TMPDIR
    protocol: str = "split"  #: split | kfold | kfold_nested | kfold_optimistic (to compare)
    fold: int = 0  #: which fold tests, counted from 0; k-fold protocols only
    classes: list[str] | None = None  #: only these, numbered in this order; null: all
    fraction: float = 1.0  #: of the training part's recordings, class by class; 0.1 is inside 0.2
    shuffle: str = "full"  #: full | window (of shards) | none
    window: int = 8  #: shards that samples are shuffled among; shuffle: window
    balance: str = "none"  #: none | class: each class is drawn equally often
    weights: dict[str, float] | str | None = None  #: {class: times}, or an .npy: one a sample
    samples_per_epoch: int | None = None  #: null: as many as the training part has
    last_batch: str = "wrap"  #: wrap | drop: the rule for an epoch's incomplete last batch
    threads: int = 2  #: that read ahead, a process
    check: bool = True  #: hold each payload against its checksum when it is first read
    resident: str = "auto"  #: auto | device | memory | none: where samples stay once they were read
    normalize: str = "band"  #: band | global: as the training part is; sample | peak; none
    top_db: float = 80.0  #: normalize: peak: how far below its peak a sample is heard, dB
    crops: int = 0  #: windows whose log-probabilities evaluation averages; 0: the whole segment
    sample_rate: int | None = None  #: Hz; where given, the shard set must have it; so those below
    n_mels: int | None = None  #: bands
    n_fft: int | None = None  #: samples
    hop_length: int | None = None  #: samples
    fmin: float | None = None  #: Hz
    fmax: float | None = None  #: Hz
    segment_seconds: float | None = None  #: seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    name: str  #: a name of toolkit.models.REGISTRY, or timm:NAME; null below: the model's own
    norm_batch: int = 16  #: samples of the global batch that share batch norm statistics
    norm_steps: int = 0  #: last steps whose statistics an evaluation goes by; 0: a running mean
    dropout: float = 0.0  #: before the classifier, and where the model has more of it
    filters: list[int] | None = None  #: channels of each stage or block
    blocks: list[int] | None = None  #: residual blocks of each stage
    bottleneck: bool | None = None  #: residual blocks of 1x1, 3x3, 1x1 instead of 3x3, 3x3
    patch: int | list[int] | None = None  #: cells of a patch: a side, or [bands, frames]
    overlap: int | list[int] | None = None  #: cells that neighbouring patches share, likewise
    conv_stem: bool = False  #: strided convolutions make the patches
    dim: int | None = None  #: width: of a ViT's tokens, of an LSTM's states one way
    depth: int | None = None  #: transformer blocks; of a forest the deepest tree, null: no limit
    heads: int | None = None  #: of the attention; divides dim
    mlp_dim: int | None = None  #: width inside an MLP; null: 4 dim
    embed_dropout: float = 0.0  #: of the tokens that enter the first block
    patch_dropout: float = 0.0  #: share of the patches that each sample leaves out in training
    drop_path: float = 0.0  #: stochastic depth of the last block; those before rise to it from 0
    trees: int | None = None  #: of a forest; null: 500
    leaf: int | None = None  #: samples that a leaf of a forest has at least; null: 1
    outputs: int | None = None  #: 1: one score tells two classes apart; null: a logit a class
    pretrained: bool | str = False  #: timm's weights: cached or downloaded, or a .safetensors file
    init_from: str | None = None  #: weights to begin with: a run, a fold, or a .safetensors file
    freeze: list[str] | None = None  #: parts not to train; [backbone]: a probe


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    name: str = "adamw"  #: adamw | adam | sgd (with Nesterov's momentum)
    lr: float = 1e-3  #: peak learning rate
    weight_decay: float = 0.05  #: decoupled in adamw, else L2; none on norms, biases, embeddings
    beta1: float = 0.9  #: adamw, adam: decay of the mean of gradients
    beta2: float = 0.999  #: adamw, adam: decay of the mean of their squares
    momentum: float = 0.9  #: sgd
    fused: bool = True  #: one kernel takes the step of all weights; false: torch's plain loops
    schedule: str = "cosine"  #: constant | cosine | linear | onecycle | plateau
    warmup_epochs: float = 1.0  #: epochs of linear warmup; onecycle has its own rise instead
    end_factor: float = 0.0  #: where cosine, linear, onecycle end, and plateau's floor; times lr
    start_factor: float = 0.04  #: where onecycle begins, times lr
    pct_start: float = 0.3  #: share of all steps in which onecycle rises
    plateau_metric: str = "loss"  #: of the validation part; any that train.best_metric takes
    plateau_factor: float = 0.1  #: what the rate is multiplied by when the metric stands still
    plateau_patience: int = 10  #: evaluations without a better value that are borne
    plateau_threshold: float = 1e-4  #: what counts as better, relative
    plateau_cooldown: int = 0  #: evaluations after a drop that are not counted
    ema: float = 0.0  #: decay of the averaged weights that are scored and saved; 0: off
    grad_clip: float = 1.0  #: largest gradient norm; 0 is off
    loss: str = "auto"  #: cross_entropy | focal | bce (each class for itself) | auto
    label_smoothing: float = 0.0  #: share of a target that all classes have alike
    focal_gamma: float = 2.0  #: loss: focal; what is right with probability p counts (1-p)^gamma
    class_weights: dict[str, float] | str | None = None  #: in the loss: {class: times} | balanced


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    time_masks: int = 0  #: SpecAugment masks along time
    time_width: int = 60  #: widest time mask, frames
    freq_masks: int = 0  #: SpecAugment masks along frequency
    freq_width: int = 25  #: widest frequency mask, mel bands
    mask_db: float = -80.0  #: what masked cells are set to, dB
    time_roll: int = 0  #: furthest circular shift either way, frames; from half on: anywhere
    time_shift: int = 0  #: furthest shift either way, a random crop of the padded sample, frames
    shift_padding: str = "silence"  #: silence (-100 dB) | reflect
    crop_frames: int = 0  #: a window around a frame that is heard, frames; 0: the whole segment
    time_scale: float = 1.0  #: most that time is stretched or shortened, a factor; 1: off
    mix: str = "none"  #: none | mixup | between_class: with another of the batch, added in power
    mix_share: float = 1.0  #: share of the samples that are mixed
    mix_alpha: float = 1.0  #: the ratio is drawn from Beta(alpha, alpha); 1: uniform
    gain_db: float = 0.0  #: largest gain either way, dB
    eq_db: float = 0.0  #: largest gain of a band either way, dB: FilterAugment
    eq_kind: str = "linear"  #: linear | step: between the bands
    eq_bands: int = 5  #: most bands; drawn from 2 up
    eq_width: int = 6  #: narrowest band, mel bands
    noise_db: float = 0.0  #: Gaussian noise on each cell: a sample's largest standard deviation, dB
    cutouts: int = 0  #: rectangles that are set to the sample's mean
    cutout_bands: int = 16  #: tallest, mel bands
    cutout_frames: int = 0  #: longest, frames; 0: the whole segment


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    epochs: int = 30  #: passes over the training part
    batch_size: int = 32  #: global: samples per optimiser step over all processes
    microbatch: int | None = None  #: largest forward on one device; null: the whole share
    precision: str = "auto"  #: no | bf16 | fp16 | auto (what `accelerate launch` says)
    compile: str = "off"  #: off | default | reduce-overhead: torch.compile of the training forward
    channels_last: bool | str = "auto"  #: true | false | auto: where it is faster
    tf32: bool = True  #: on GPUs: float32 products and convolutions of inputs rounded to 10 bits
    cudnn_benchmark: bool = True  #: on GPUs: try convolutions, take the fastest; off with `exact`
    seed: int = 42  #: of weights, order, dropout and augmentation
    #: of the validation part: macro_f1 | accuracy | balanced_accuracy | loss | roc_auc |
    #: average_precision (mAP) | ece | eer, min_dcf | micro_f1; chooses the epoch
    best_metric: str = "macro_f1"
    patience: int = 0  #: evaluations without a better best_metric that end the training; 0: off
    log_every: int = 10  #: steps between lines of metrics.jsonl
    save_every: int = 0  #: steps between checkpoints; 0: at the end of each epoch
    save_minutes: float = 30.0  #: and after so many minutes without one; 0: off
    keep_last: int = 2  #: checkpoints to keep: a damaged one is passed over for the one before it
    keep_best: int = 0  #: and those of so many best epochs; best.safetensors is there anyway
    keep_epochs: bool = False  #: the weights of every epoch, epochs/epoch_Y.safetensors
    max_steps: int | None = None  #: stop after so many steps, evaluate and report: a dry run
    resume: str = "auto"  #: auto | never (start over) | must
    threads: int | None = None  #: CPU threads a process; null: the cores it may use, shared out
    timeout: float = 600.0  #: seconds without progress that end all processes; 0: never
    nonfinite_patience: int = 0  #: steps in a row, their loss or gradient not finite, to skip
    overfit_batch: bool = False  #: train the first batch alone, to see that the model can learn
    profile: bool = False  #: leave trace.json.gz and profile.txt of a few steps in the run's folder
    exact: bool = False  #: the same bits on 1, 2, 4, ... processes; needs microbatch and threads


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    wandb: str = "disabled"  #: disabled | offline | online; metrics.jsonl is always written
    project: str = "wavefold"  #: W&B's project
    entity: str | None = None  #: W&B's team or user; null: whose the key is
    tensorboard: bool = False  #: event files in the run's folder


@dataclass(frozen=True, kw_only=True, slots=True)
class HubConfig:
    repo: str | None = None  #: owner/name on the Hub that each epoch's weights are pushed to
    private: bool = True  #: of a repository that has to be made
    timeout: float = 300.0  #: seconds that a file may take, and that the end waits for the rest


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    target: str | None = None  #: of two classes the genuine one: EER, DET, min-DCF; null: the last
    threshold: str = "macro_f1"  #: by what the validation part chooses it; none: one half
    by: str | None = None  #: tells attacks apart: attack, group, or a regex on the path
    dcf_prior: float = 0.05  #: min-DCF as in ASVspoof 5: the prior of what is no target
    dcf_miss: float = 1.0  #: cost of a target that is missed
    dcf_false_alarm: float = 10.0  #: cost of another that is accepted


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One experiment. Only the loop sees all of it; everything below takes its own part."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def folder(self) -> Path:
        """Where this run, or this fold of it, lives."""
        run = Path(self.run.dir) / self.run.name / self.run.part
        return run if self.data.protocol == "split" else run / f"fold-{self.data.fold}"

    def input_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """What the model sees of samples of `shape`, both (M, T); a UserError if that is more."""
        frames = self.augment.crop_frames or shape[1]
        if frames > shape[1]:
            raise UserError(f"augment.crop_frames={frames}: a segment has {shape[1]}; 0 takes all")
        return shape[0], frames

    def to_dict(self) -> dict[str, Any]:
        """Sections of plain values, as YAML and JSON hold them."""
        return dataclasses.asdict(self)


def get(config: Config, name: str) -> Any:
    """The value of `section.key`."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)
