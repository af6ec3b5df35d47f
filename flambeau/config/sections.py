"""The engine's own settings: every key that Flambeau itself reads, with its type, default and meaning.

These classes are at once what the engine receives, what the configuration is checked against (their source is
read like any part's signature), and what the JSON schema and the documentation are made from. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval


@dataclass(kw_only=True)
class LoaderSettings:
    """How samples become batches: the keys of `data:` that the engine reads itself."""

    batch_size: Annotated[int, Ge(1)] = 64
    """Samples per optimizer step, over all devices and accumulation steps (the global batch)."""
    batch_size_per_rank: Annotated[int, Ge(1)] | None = None
    """Samples per optimizer step and process; if given, the global batch is this times the processes."""
    eval_batch_size: Annotated[int, Ge(1)] | None = None
    """Samples per batch in evaluation; default: four times the batch of one process."""
    workers: Annotated[int, Ge(0)] = 0
    """Processes that fetch and transform samples; 0 fetches in the training process. Never changes a result."""
    prefetch: Annotated[int, Ge(1)] = 2
    """Batches that each worker prepares ahead."""
    shuffle: bool = True
    """A new permutation of the training samples each epoch, a function of (seed, epoch)."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is smaller than the others."""
    device_resident: bool | Literal["auto"] = "auto"
    """Keep data held in tensors on the accelerator; `auto` does so if it takes under a quarter of its memory."""
    limit: Annotated[int, Ge(1)] | Annotated[float, Interval(gt=0, le=1)] | None = None
    """Train on this many samples (`500`) or this share of them (`0.1`) alone, chosen as a function of the seed."""
    limit_val: Annotated[int, Ge(1)] | Annotated[float, Interval(gt=0, le=1)] | None = None
    """Validate on this many samples, or this share of them, alone."""
    limit_test: Annotated[int, Ge(1)] | Annotated[float, Interval(gt=0, le=1)] | None = None
    """Test on this many samples, or this share of them, alone."""
    val_is_train: bool = False
    """Say in words that validation samples may be training samples."""
    val_is_test: bool = False
    """Say in words that validation samples may be test samples."""
    test_is_train: bool = False
    """Say in words that test samples may be training samples."""
    fingerprint: Literal["sampled", "full", "off"] = "sampled"
    """What is remembered of the data, and compared at a resume: a digest of some samples, of all, or their number."""


@dataclass(kw_only=True)
class TransformSettings:
    """The key of each transform that the engine reads itself."""

    on: str | None = None
    """What the transform gets and gives back: `inputs`, `targets`, an entry of them (`inputs.image`), or `sample`: both
    together. Default: what the transform says itself, else `inputs`."""


@dataclass(kw_only=True)
class SelectionSettings:
    """Parameters of the model: those that fit all of what is given, and each key takes one thing or a list of them."""

    pattern: str | list[str] | None = None
    """Shell-style pattern of parameter names: `backbone.*`, `*.bias`."""
    type: str | list[str] | None = None
    """Class of a module that a parameter is in, base classes included: `LayerNorm`, `torch.nn.Embedding`."""
    ndim: Annotated[int, Ge(0)] | list[Annotated[int, Ge(0)]] | None = None
    """Number of dimensions: 2 for the weight of a linear layer, 1 for biases and norms."""


@dataclass(kw_only=True)
class GroupSettings(SelectionSettings):
    """One parameter group of the optimizer. Of two groups that fit a parameter, the narrower has to come first."""

    name: str | None = None
    """What the group is called in the log (`lr/NAME`); default: what chooses it."""
    lr: Annotated[float, Ge(0)] | None = None
    """Learning rate of the group; default: the optimizer's."""
    lr_factor: Annotated[float, Ge(0)] | None = None
    """Learning rate of the group as a multiple of the optimizer's, in place of `lr`."""
    weight_decay: Annotated[float, Ge(0)] | None = None
    """Weight decay of the group; default: the optimizer's."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Any other argument of the optimizer that differs in this group: `{betas: [0.9, 0.95]}`."""


@dataclass(kw_only=True)
class LayerDecaySettings:
    """Learning rates that fall from the model's output to its input (Bao et al., 2022)."""

    factor: Annotated[float, Interval(gt=0, le=1)]
    """What the rate is multiplied by from one block to the one before it."""
    blocks: str
    """Shell-style pattern of the names of the model's blocks, in the order of the model: `encoder.layers.*`."""


@dataclass(kw_only=True)
class OptimizerSettings:
    """The keys of `optimizer:` that the engine reads itself; the others go to the optimizer."""

    groups: list[GroupSettings] = field(default_factory=list)
    """Parameter groups with a learning rate, weight decay or other arguments of their own."""
    no_decay: bool | list[str | SelectionSettings] = False
    """No weight decay on biases and on parameters of fewer than two dimensions (norms); or on those that a list names,
    by patterns of their names or by `{type: Embedding}` and the like."""
    layer_decay: LayerDecaySettings | None = None
    """Smaller learning rates for the blocks nearer to the input."""
    lr_reference_batch: Annotated[int, Ge(1)] | None = None
    """The global batch that `lr` is meant for; the rate in use is scaled to the run's own."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """How the rate grows with the batch: in proportion (Goyal et al., 2017), or with its square root."""


@dataclass(kw_only=True)
class NamedOptimizerSettings(OptimizerSettings):
    """The keys of one of several optimizers, `optimizers.LABEL:`, that the engine reads itself."""

    parameters: list[str] = field(default_factory=list)
    """Shell-style patterns of names of its parameters (`critic.*`); default: those of the submodule of its label."""


@dataclass(kw_only=True)
class EarlyStoppingSettings:
    """Stop when the monitored score has not improved for a while."""

    patience: Annotated[int, Ge(1)] = 10
    """Validations without improvement before the run stops."""
    min_delta: Annotated[float, Ge(0)] = 0.0
    """Smallest change that counts as an improvement."""


@dataclass(kw_only=True)
class EmaSettings:
    """Exponential moving average of the weights, evaluated beside the model."""

    decay: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    """Weight of the old average at each update."""
    update_after_step: Annotated[int, Ge(0)] = 0
    """Steps during which the average simply follows the weights."""
    update_every: Annotated[int, Ge(1)] = 1
    """Optimizer steps between two updates."""


@dataclass(kw_only=True)
class ProfileSettings:
    """Record a torch profiler trace into the run folder."""

    start_step: Annotated[int, Ge(0)] = 10
    """First step that is recorded, counted from the start of the process; at the earliest the second, as the step
    before it warms the profiler up."""
    steps: Annotated[int, Ge(1)] = 10
    """Optimizer steps that are recorded."""


@dataclass(kw_only=True)
class ClipSettings(SelectionSettings):
    """Parameters whose gradients are clipped together. Give either `norm` or `value`."""

    norm: Annotated[float, Gt(0)] | None = None
    """Clip their common norm to this value."""
    value: Annotated[float, Gt(0)] | None = None
    """Clip each of their elements to this absolute value."""
    name: str | None = None
    """What they are called in the log (`train/grad_norm/NAME`); default: what chooses them."""


@dataclass(kw_only=True)
class FsdpSettings:
    """Shard the model over the processes with torch's `fully_shard` (FSDP2), in place of a whole copy in each."""

    blocks: list[str] = field(default_factory=list)
    """Class names of the modules that are sharded, gathered and freed one by one (`Block`); default: what the model's
    own method `fsdp_blocks()` gives, else the model as a whole."""
    param_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Arithmetic of forward and backward pass; default: the parameters' own."""
    reduce_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Arithmetic in which gradients are added up over the processes; default: as `param_dtype`."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward pass, and gather them again for the backward pass."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each block, and compute its activations again in the backward pass."""
    compile_blocks: bool = False
    """Compile each block by itself with torch.compile."""
    meta_init: bool = False
    """Build the model without memory for its weights, and initialise each shard where it will lie."""


@dataclass(kw_only=True)
class AlternateSettings:
    """Train modules by turns; those of the other turns rest: no gradient, and evaluation mode."""

    modules: list[list[str]]
    """For each turn, shell-style patterns of names of its modules; what no turn names trains always."""
    every_epochs: Annotated[int, Ge(1)] | None = None
    """Epochs of a turn. Give either `every_epochs` or `every_steps`."""
    every_steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps of a turn. Give either `every_epochs` or `every_steps`."""
    restart_schedule: bool = False
    """Run the learning rate's schedule from its beginning to its end in each turn."""


@dataclass(kw_only=True)
class UnfreezeSettings:
    """When something frozen begins to be trained. Give either `after_epochs` or `after_steps`."""

    pattern: str
    """Shell-style pattern of names of modules or parameters that `trainer.freeze` or `trainer.freeze_parameters` hold
    still; of a module, all that is in it."""
    after_epochs: Annotated[int, Ge(1)] | None = None
    """Passes over the training samples during which it stays frozen."""
    after_steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps during which it stays frozen."""


@dataclass(kw_only=True)
class TrainerSettings:
    """How a run proceeds: the keys of `trainer:` that the engine reads itself."""

    epochs: Annotated[int, Ge(0)] | None = None
    """Passes over the training samples. Give either `epochs` or `steps`."""
    steps: Annotated[int, Ge(0)] | None = None
    """Optimizer steps. Give either `epochs` or `steps`."""
    stop_after_epochs: Annotated[int, Ge(0)] | None = None
    """End the run after this many epochs, with the schedules of the whole run; it can be resumed to go on."""
    steps_per_epoch: Annotated[int, Ge(1)] | None = None
    """Optimizer steps that are called an epoch, for data without end or of great length: the next epoch goes on in the
    data where the last one ended. Default: one pass over the training samples."""
    precision: Literal["fp64", "fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; bf16 and fp16 use autocast, fp16 with a loss scaler."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Micro-batches per optimizer step; changes memory, not mathematics."""
    micro_batch: Annotated[int, Ge(1)] | Literal["auto"] | None = None
    """Most samples that a process takes through the model at a time, in place of `accumulate`; `auto` finds the most
    that fit into memory before training."""
    dry_batch: bool = True
    """Take one batch of training and of validation through the model before the first step, and undo it: errors of
    shape and memory, and parameters that get no gradient, show at once."""
    sync_batch_norm: bool = True
    """With several processes: batch norm takes its statistics over all of them."""
    static_graph: bool = False
    """With several processes: promise that every step runs the same operations, so that less is looked up."""
    fsdp: FsdpSettings | None = None
    """Shard the model over the processes; default: each holds a whole copy (DDP)."""
    check_replicas_every: Annotated[int, Ge(1)] | None = 500
    """With several processes: optimizer steps between two comparisons of the copies, bit by bit."""
    hang_timeout: Annotated[float, Gt(0)] = 600.0
    """With several processes: seconds without progress after which the run says which process is where, and ends."""
    clip_norm: Annotated[float, Gt(0)] | None = None
    """Clip the norm of all gradients together to this value."""
    clip_value: Annotated[float, Gt(0)] | None = None
    """Clip each element of all gradients to this absolute value."""
    clip: list[ClipSettings] = field(default_factory=list)
    """Clip the gradients of groups of parameters, each by itself; others are not clipped."""
    log_grad_norm: bool = False
    """Log the norm of all gradients (`train/grad_norm`) also where nothing is clipped."""
    validate_every_epochs: Annotated[int, Ge(1)] | None = 1
    """Epochs between validations. The end of a run is always validated."""
    validate_every_steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps between validations; if given, replaces `validate_every_epochs`."""
    validate_per_epoch: Annotated[int, Ge(1)] | None = None
    """Validations in each epoch, evenly spread, the last one at its end; if given, replaces the two above."""
    validate_batches: Annotated[int, Ge(1)] | None = None
    """Validate on the first samples alone: so many batches of `data.eval_batch_size` (default: of the global batch), on
    any number of processes. The test at the end and `flambeau evaluate` measure all samples."""
    log_every: Annotated[int, Ge(1)] = 50
    """Optimizer steps between two log lines; the only moments at which the host waits for the device."""
    log_per_epoch: Annotated[int, Ge(1)] | None = None
    """Log lines in each epoch, evenly spread; if given, replaces `log_every`."""
    monitor: str | None = None
    """The validation score that decides which checkpoint is best; default: the first metric, else the loss."""
    monitor_mode: Literal["min", "max"] | None = None
    """Whether lower or higher is better; default: what the metric itself says."""
    early_stopping: EarlyStoppingSettings | None = None
    """Stop when the monitored score no longer improves."""
    ema: EmaSettings | None = None
    """Keep and evaluate an exponential moving average of the weights."""
    freeze: list[str] = field(default_factory=list)
    """Shell-style patterns of module names that are not trained and stay in evaluation mode."""
    freeze_parameters: list[str] = field(default_factory=list)
    """Shell-style patterns of parameter names that are not trained; their modules' mode stays as it is."""
    unfreeze: list[UnfreezeSettings] = field(default_factory=list)
    """What is frozen at first only, and until when."""
    alternate: AlternateSettings | None = None
    """Train modules by turns, by steps or epochs."""
    compile: bool = False
    """Run the model through torch.compile."""
    activation_checkpointing: bool | list[str] = False
    """Keep only the inputs of each block, and compute its activations again in the backward pass: less memory for about
    a third more time, and the same bits. Class names of the blocks (`[Block]`), or true: those that the model's own
    method `fsdp_blocks()` gives."""
    nan_policy: Literal["stop", "skip"] = "stop"
    """On a loss or gradient that is not finite: stop and name its origin, or skip the update."""
    max_skips: Annotated[int, Ge(1)] = 10
    """With `nan_policy: skip`: stop after this many skipped updates in a row."""
    deterministic: bool = True
    """Use deterministic algorithms, so that a repeated or resumed run gives the same bits."""
    test_at_end: bool = False
    """Evaluate the best checkpoint on the test split at the end."""
    debug: Literal["one_batch", "one_epoch", "one_validation", "few_batches", "overfit_batch"] | None = None
    """Shortened runs, marked as such: one batch of everything, one epoch, one step and a whole validation, three
    batches of everything, or one batch over and over."""
    detect_anomaly: bool = False
    """Stop at the first backward operation that gives NaN, and show the forward operation that it belongs to; slow."""
    summary: Annotated[int, Ge(0)] | None = None
    """Levels of modules in the table of the model that stands in log.txt, shown on the terminal too if given; 0 makes
    none. Default: three, in log.txt only."""
    profile: ProfileSettings | None = None
    """Record a profiler trace."""
    progress: bool = True
    """Show a progress bar on a terminal."""


@dataclass(kw_only=True)
class CheckpointSettings:
    """When checkpoints are written and which are kept: the section `checkpoint:`."""

    every_epochs: Annotated[int, Ge(1)] | None = 1
    """Epochs between checkpoints."""
    every_steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps between checkpoints."""
    per_epoch: Annotated[int, Ge(1)] | None = None
    """Checkpoints in each epoch, evenly spread, besides those that are due by the settings above."""
    every_minutes: Annotated[float, Gt(0)] | None = 10.0
    """Minutes after which a checkpoint is written even if none is due by steps or epochs."""
    keep_last: Annotated[int, Ge(1)] = 2
    """The newest checkpoints that are kept."""
    keep_best: Annotated[int, Ge(0)] = 1
    """The best checkpoints that are kept, by `trainer.monitor`."""
    keep_every_steps: Annotated[int, Ge(1)] | None = None
    """Checkpoints whose step is a multiple of this are kept for good."""


@dataclass(kw_only=True)
class PretrainedSettings:
    """Weights that a new run starts with, for a part of the model or all of it: the section `pretrained:`."""

    path: str
    """A run folder, a checkpoint, a `.safetensors` file (or its `.index.json`, or the folder of either), a torch file
    of tensors (`.pt`, `.pth`, `.bin`, `.ckpt`), `hf://org/name[@revision][/file]` or `timm://name`."""
    checkpoint: Literal["best", "last"] | Annotated[int, Ge(0)] | None = None
    """Which checkpoint of a run: `best` (the default), `last` or a step."""
    weights: Literal["auto", "model", "ema"] = "auto"
    """Of a run or checkpoint: the weights themselves or their average; `auto` takes what the monitored score is of."""
    key: str | None = None
    """Which entry of a torch file that holds several holds the weights (`model_ema`)."""
    map: dict[str, str | None] = field(default_factory=dict)
    """Beginnings of the source's names, and what stands in their place in the model; a key that begins with `^` is a
    regular expression, whose groups the replacement may use (`\\1`). The first that fits a name is taken."""
    into: str | None = None
    """The module of the model that is filled; names are those within it."""
    include: list[str] = field(default_factory=list)
    """Shell-style patterns of the model's names (modules or tensors) that are filled; default: all."""
    exclude: list[str] = field(default_factory=list)
    """Shell-style patterns of the model's names (modules or tensors) that stay as they are initialised."""
    strict: bool = True
    """Refuse names that only one side has and shapes that differ, instead of leaving them out and saying so."""
