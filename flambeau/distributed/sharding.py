"""One model over many processes, each of which keeps a piece of every weight: torch's `fully_shard` by configuration.

A block (a layer of a transformer, say) is gathered when its forward or backward pass begins and let go after it, so a
process needs memory for its pieces and for a block or two. Weights, gradients, the optimizer's state and the average
of the weights all lie in pieces. Names of parameters stay what they are in the model.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flambeau.checkpoint import CheckpointStore
from flambeau.checkpoint.reading import Like
from flambeau.checkpoint.sharded_store import ShardedStore
from flambeau.config.sections import FsdpSettings, TrainerSettings
from flambeau.distributed.batch_norm import convert
from flambeau.distributed.deferred import DeferredWeights, allocate, named_tensors
from flambeau.distributed.recomputing import recompute
from flambeau.distributed.replicas import copy_from_main, prepare_copy
from flambeau.errors import UsageError
from flambeau.runtime.shards import is_sharded, local_part
from flambeau.runtime.world import World

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SHARDING = "_flambeau_sharding"


def check_sharding(settings: TrainerSettings) -> None:
    """Refuse settings that do not go together with `trainer.fsdp`.

    Raises:
        UsageError: says which, and what to take instead.
    """
    fsdp = settings.fsdp
    if fsdp is None:
        return
    if settings.activation_checkpointing:
        raise UsageError(
            "trainer.activation_checkpointing is for a model that is not sharded",
            remedy="use trainer.fsdp.activation_checkpointing, and trainer.fsdp.blocks",
        )
    if settings.precision == "fp16" or "fp16" in (fsdp.param_dtype, fsdp.reduce_dtype):
        raise UsageError(
            "trainer.fsdp does not go with fp16, whose gradients would need a scale agreed on by all processes",
            remedy="use bf16: trainer.fsdp.param_dtype=bf16",
        )
    if settings.precision != "fp32" and fsdp.param_dtype is not None:
        raise UsageError(
            f"trainer.precision is {settings.precision} and trainer.fsdp.param_dtype is {fsdp.param_dtype}",
            remedy="give one of the two, and leave the other at its default",
        )
    if settings.micro_batch == "auto":
        raise UsageError(
            "trainer.micro_batch: auto does not go with trainer.fsdp: no process can try for itself what fits",
            remedy="give trainer.micro_batch a number",
        )
    if settings.unfreeze:
        raise UsageError(
            "trainer.unfreeze does not go with trainer.fsdp, which lays down at the beginning what gets a gradient",
            remedy="train the head in a run of its own, and start the next one from it by `pretrained`",
        )
    if settings.compile:
        raise UsageError(
            "trainer.compile does not go with trainer.fsdp", remedy="compile each block: trainer.fsdp.compile_blocks"
        )


def prepare_blocks(model: nn.Module, settings: FsdpSettings) -> list[nn.Module]:
    """Compile the blocks of a model and have their activations computed again in the backward pass, as asked for.

    Returns:
        The blocks, inner ones before those that they are in.
    """
    blocks = find_blocks(model, settings)
    if not blocks and (settings.activation_checkpointing or settings.compile_blocks):
        key = "activation_checkpointing" if settings.activation_checkpointing else "compile_blocks"
        raise UsageError(
            f"trainer.fsdp.{key} is for the blocks of the model, and none are named",
            remedy="name their class in trainer.fsdp.blocks, or give the model a method fsdp_blocks()",
        )
    for block in blocks:
        if settings.compile_blocks:
            block.compile()
    if settings.activation_checkpointing:
        recompute(blocks)
    return blocks


def find_blocks(model: nn.Module, settings: FsdpSettings, key: str = "trainer.fsdp.blocks") -> list[nn.Module]:
    """The modules of the configured classes, or else those that the model itself names; inner ones first.

    Raises:
        UsageError: a class has no instance in the model, or the model names what is not a part of it.
    """
    parts = [module for module in model.modules() if module is not model]
    if settings.blocks:
        classes = {type(module).__name__ for module in parts}
        for name in settings.blocks:
            if name not in classes:
                near = difflib.get_close_matches(name, classes, n=3, cutoff=0.4)
                known = near or sorted(classes)
                raise UsageError(
                    f"{key}: no module of {type(model).__name__} is of a class '{name}'",
                    remedy=f"{'the nearest are' if near else 'its classes are'} {', '.join(known)}",
                )
        chosen = {id(module) for module in parts if type(module).__name__ in settings.blocks}
    elif callable(own := getattr(model, "fsdp_blocks", None)):
        chosen = {id(module) for module in cast("Callable[[], Any]", own)()}
        if not chosen <= {id(module) for module in parts}:
            raise UsageError(f"{type(model).__name__}.fsdp_blocks() gives what is not a module of the model")
    else:
        return []
    blocks = [module for module in reversed(parts) if id(module) in chosen]
    for block in blocks:
        if isinstance(block, nn.ModuleList | nn.ModuleDict):
            raise UsageError(
                f"trainer.fsdp: a {type(block).__name__} has no forward pass, and cannot be a block",
                remedy=f"name what it holds: {', '.join(sorted({type(part).__name__ for part in block.children()}))}",
            )
    return blocks


def _blocks_to_recompute(model: nn.Module, names: bool | Sequence[str]) -> list[nn.Module]:
    key = "trainer.activation_checkpointing"
    blocks = find_blocks(model, FsdpSettings(blocks=[] if isinstance(names, bool) else [*names]), key)
    if not blocks:
        raise UsageError(
            f"{key}: {type(model).__name__} does not say what its blocks are",
            remedy=f"name their class, as in {key}: [Block], or give the model a method fsdp_blocks()",
        )
    return blocks


def shard_model(
    model: nn.Module,
    settings: FsdpSettings,
    *,
    world: World,
    device: torch.device,
    weights: DeferredWeights | None = None,
) -> nn.Module:
    """Shard a model over all processes, in place; what a process keeps lies on `device`.

    To be called before an optimizer is made: the parameters become other objects. A model that is sharded already is
    left as it is; one process alone has nothing to shard, and gets what `prepare_blocks` does.

    Args:
        model: the same in every process; on the meta device if `weights` is given.
        settings: `trainer.fsdp`.
        world: the processes.
        device: of this process.
        weights: what the constructor did to the weights of a model without memory, see `build_on_meta`.

    Raises:
        UsageError: no module is of a named class, or a parameter cannot be sharded.
    """
    if is_sharded_model(model):
        return model
    if world.size == 1:
        prepare_blocks(model, settings)
        return model
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):  # as in 2.6
        raise UsageError(
            f"trainer.fsdp: torch {torch.__version__} shards models on accelerators only",
            remedy="use a newer torch, or leave trainer.fsdp out on the CPU",
        )
    _check_parameters(model, find_blocks(model, settings))
    sharding = _Sharding(_template(model), settings, world, device)
    sharding.apply(model)
    if weights is not None:
        weights.fill(model, device)
    # Not as a module: the template's parameters are none of the model's.
    model.__dict__[_SHARDING] = sharding
    return model


def is_sharded_model(model: nn.Module) -> bool:
    """Whether `shard_model` has sharded a model."""
    return _SHARDING in model.__dict__


def prepare_model(
    model: nn.Module,
    settings: TrainerSettings,
    world: World,
    device: torch.device,
    weights: DeferredWeights | None = None,
) -> nn.Module:
    """A model as this process trains it: on its device, whole or in pieces, with rank 0's weights.

    Args:
        model: one that was prepared already stays as it is.
        weights: see `shard_model`.

    Raises:
        UsageError: see `check_sharding` and `shard_model`.
    """
    if settings.fsdp is None:
        if settings.activation_checkpointing:
            recompute(_blocks_to_recompute(model, settings.activation_checkpointing))
        return prepare_copy(model.to(device), settings, world)
    if is_sharded_model(model):
        return model
    check_sharding(settings)
    if world.size > 1 and settings.sync_batch_norm:
        convert(model)
    if weights is None and world.size > 1:
        copy_from_main([*model.parameters(), *model.buffers()])
    model = shard_model(model, settings.fsdp, world=world, device=device, weights=weights)
    return model.to(device)  # what no parameter's block has taken along


def check_optimizer(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that was made before a model was sharded: it would step what nobody uses.

    Raises:
        UsageError: says what to do instead.
    """
    parameters = (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    if is_sharded_model(model) and not all(map(is_sharded, parameters)):
        raise UsageError(
            "the optimizer was made before the model was sharded, and has other parameters than the model",
            remedy="call flambeau.distributed.sharding.prepare_model first, and make the optimizer of what it returns",
        )


def layout_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Like | None:
    """How a checkpoint's tensors are to lie in this process, by their names; None if all are whole here.

    Weights and their average lie as the model's parameters, and what an optimizer keeps of a parameter in its shape
    lies as that parameter.
    """
    if not is_sharded_model(model):
        return None
    reshard(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def like(name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        part, _, rest = name.partition(".")
        found = parameters.get(rest) if part in ("model", "ema") else None
        if part == "optimizer" and (kept := re.match(r"state\.(\d+)\.", rest)):
            found = trained[int(kept[1])] if int(kept[1]) < len(trained) else None
        return found if found is not None and tuple(found.shape) == tuple(shape) else None

    return like


def store_for(model: nn.Module, world: World, folder: Path, **arguments: Any) -> CheckpointStore:
    """The store of a run's checkpoints, written by rank 0, or of a model in pieces by all processes together.

    Args:
        arguments: see `CheckpointStore`.
    """
    if not is_sharded_model(model):
        return CheckpointStore(folder, **arguments)
    return ShardedStore(folder, world=world, **arguments)


@torch.no_grad()
def twin_of(model: nn.Module) -> nn.Module:
    """A second model with the same weights: a deep copy, or for a sharded model one that is sharded alike."""
    if not is_sharded_model(model):
        return copy.deepcopy(model)
    reshard(model)
    sharding: _Sharding = model.__dict__[_SHARDING]
    twin = copy.deepcopy(sharding.template)
    sharding.apply(twin)
    allocate(twin, sharding.device)
    for (_, tensor), (_, source) in zip(named_tensors(twin), named_tensors(model), strict=True):
        local_part(tensor).copy_(local_part(source))
    twin.__dict__[_SHARDING] = sharding
    return twin


def reshard(model: nn.Module) -> None:
    """Let go of weights that a forward pass without a backward pass has left gathered.

    `fully_shard` keeps those of the root for the backward pass that is to come. Without one, the next forward pass
    would go with what they were, though their pieces have moved on.
    """
    if is_sharded_model(model):
        for module in model.modules():
            if hasattr(module, "set_requires_gradient_sync"):  # one that `fully_shard` was applied to
                module.reshard()  # type: ignore[operator]


@dataclass(frozen=True)
class _Sharding:
    """How a model is sharded, so that another can be likewise."""

    template: nn.Module
    """The model before, without memory."""
    settings: FsdpSettings
    world: World
    device: torch.device

    def apply(self, model: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        settings = self.settings
        blocks = prepare_blocks(model, settings)
        param = _DTYPES[settings.param_dtype] if settings.param_dtype else None
        policy = MixedPrecisionPolicy(
            param_dtype=param, reduce_dtype=_DTYPES[settings.reduce_dtype] if settings.reduce_dtype else None
        )
        mesh = init_device_mesh(self.device.type, (self.world.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=settings.reshard_after_forward, mp_policy=policy)
        if param is not None:  # the criterion is to compute in full precision
            policy = MixedPrecisionPolicy(
                param_dtype=param, reduce_dtype=policy.reduce_dtype, output_dtype=torch.float32
            )
        # Of the root, torch itself keeps what the backward pass needs at once.
        fully_shard(model, mesh=mesh, reshard_after_forward=settings.reshard_after_forward, mp_policy=policy)


def _template(model: nn.Module) -> nn.Module:
    """A copy of a model without memory for its parameters and buffers."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, memo)


def _check_parameters(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    owners: dict[int, tuple[int, str]] = {}
    names = {id(module): name for name, module in model.named_modules()}
    inside = [f"{names[id(block)]}." for block in blocks]  # inner ones first
    for name, parameter in model.named_parameters(remove_duplicate=False):
        block = next((number for number, prefix in enumerate(inside) if name.startswith(prefix)), -1)
        owner, first = owners.setdefault(id(parameter), (block, name))
        if owner != block:
            raise UsageError(
                f"trainer.fsdp: '{first}' and '{name}' are one parameter, and lie in different blocks",
                remedy="name blocks that hold neither or both of the two",
            )
        if parameter.ndim == 0:
            raise UsageError(
                f"trainer.fsdp: the parameter '{name}' has no dimension, and cannot be cut into pieces",
                remedy="make it a tensor of one element: torch.ones(1)",
            )
        if not parameter.is_contiguous():
            raise UsageError(
                f"trainer.fsdp: the memory of the parameter '{name}' is not in the order of its dimensions",
                remedy="leave channels_last to the input, or call .contiguous() on the weight",
            )
