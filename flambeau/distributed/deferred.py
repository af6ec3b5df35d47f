"""Models built without memory for their weights, which are computed later, one at a time: the same bits as ever.

A model that does not fit into one process's memory is built on torch's meta device, where tensors have a shape and no
values, and sharded there. What its constructor does to each weight (draw, scale, zero a row) is recorded meanwhile,
and done later on that weight alone, whole, in host memory, of which each process then keeps its piece.

Every random draw is made once while it is recorded, into memory that is let go at once, and the state that the
generator had is kept: so the draws after it are what they would have been, and it can be repeated. Hence a weight is
what the constructor makes of it without all this, in whatever order it initialises and however many processes there
are, and nothing of the model has to be written for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from flambeau.errors import UsageError

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.empty_strided)
"""What gives a tensor without memory. Small things that constructors compute with (`arange`, `tensor`) stay real."""
_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
_WITHOUT_CONTENT = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_OVERWRITING = ("copy_", "fill_", "zero_", "uniform_", "normal_", "exponential_", "bernoulli_", "random_")
"""In-place operations whose result does not depend on what was there."""


def build_on_meta(build: Callable[[], nn.Module]) -> tuple[nn.Module, DeferredWeights]:
    """A model as `build` makes it, its large tensors on the meta device, and how to compute them.

    The random generators are left as `build` alone would leave them.

    Raises:
        UsageError: the constructor asks for values of weights, which are not there.
    """
    weights = DeferredWeights()
    try:
        recorder = _Recorder(weights)
        with _OnMeta(recorder), recorder, _truncated_draws(recorder):
            model = build()
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error).lower():
            raise
        raise UsageError(
            f"trainer.fsdp.meta_init: the model's constructor needs the values of its weights: {error}",
            remedy="set trainer.fsdp.meta_init to false",
        ) from error
    weights.note_names(model)
    return model, weights


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor without values: its memory, which views share, and how it lies there."""

    storage: int
    length: int
    """Bytes of the storage."""
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]
    offset: Any
    """Elements before its first."""

    def in_memory(self, memory: dict[int, torch.UntypedStorage]) -> Tensor:
        """The tensor; memory that nothing was written to yet is asked for."""
        if self.storage not in memory:
            memory[self.storage] = torch.empty(self.length, dtype=torch.uint8, device="cpu").untyped_storage()
        empty = torch.empty(0, dtype=self.dtype, device="cpu")
        return empty.set_(memory[self.storage], self.offset, self.shape, self.strides)

    def put(self, value: Tensor, memory: dict[int, torch.UntypedStorage]) -> None:
        """Make a tensor with memory of its own the content of this one."""
        if value.stride() == self.strides and value.storage_offset() == self.offset:
            memory[self.storage] = value.untyped_storage()
        else:
            memory.pop(self.storage, None)
            self.in_memory(memory).copy_(value)


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation of the constructor that gave something its values."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: tuple[_Place | None, ...]
    """What it returned that has memory of its own; None for what has not."""
    reads: frozenset[int]
    writes: frozenset[int]
    generator: Tensor | None
    """State of torch's generator before it, if it draws."""

    def run(self, memory: dict[int, torch.UntypedStorage]) -> None:
        """Do it, on the host."""
        if self.generator is not None:
            torch.set_rng_state(self.generator)
        args, kwargs = tree_map_only(_Place, lambda place: place.in_memory(memory), (self.args, self.kwargs))
        for place, value in zip(self.given, _tensors(self.function(*args, **kwargs)), strict=True):
            if place is not None:
                place.put(value, memory)


class DeferredWeights:
    """What a constructor did to the weights of a model on the meta device."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.kept_alive: list[Tensor] = []
        """So that no two tensors have the same memory by name."""
        self._places: dict[str, _Place] = {}

    def note_names(self, model: nn.Module) -> None:
        """Take down what the model's tensors are, before somebody casts or moves them."""
        for name, tensor in named_tensors(model):
            if _is_meta(tensor):
                self._places[name] = _place_of(tensor)

    def value(self, name: str) -> Tensor:
        """A parameter or buffer as the constructor made it, in host memory. The random generators stay as they are."""
        place = self._places[name]
        memory: dict[int, torch.UntypedStorage] = {}
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            for step in self._history(place.storage):
                step.run(memory)
            return place.in_memory(memory)

    def fill(self, model: nn.Module, device: torch.device) -> None:
        """Give memory on `device` and values to whatever of `model` has none; of sharded parameters to their pieces."""
        for name, tensor in allocate(model, device).items():
            copy_piece(self.value(name), tensor)

    def _history(self, storage: int) -> list[_Step]:
        """The operations that the content of a storage comes from, in order."""
        wanted, found = {storage}, []
        for step in reversed(self.steps):
            if step.writes & wanted:
                found.append(step)
                wanted = (wanted - step.writes) | step.reads
        return found[::-1]


def allocate(model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Give memory on `device` to whatever of `model` has none; returns that by name. Tied weights stay tied."""
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model):
        if _is_meta(tensor):
            names.setdefault(id(tensor), []).append(name)
    model._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=device) if _is_meta(tensor) else tensor
    )
    tensors = dict(named_tensors(model))
    for first, *others in names.values():
        for name in others:  # `_apply` has torn them apart
            path, _, own = name.rpartition(".")
            module = model.get_submodule(path)
            held = module._parameters if own in module._parameters else module._buffers
            held[own] = tensors[first]  # type: ignore[assignment]
    return {first: tensors[first] for first, *_ in names.values()}


class _OnMeta(TorchFunctionMode):
    """New tensors have no memory unless they are asked to lie somewhere, and do not say so.

    `torch.nn.init` would leave them out (`orthogonal_`, `dirac_`, `sparse_`), and there would be nothing to record.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if self._recorder.paused:
            return func(*args, **named)
        if func in _FACTORIES and named.get("device") is None and "out" not in named:
            named["device"] = torch.device("meta")
        if func == _IS_META:
            return False
        return func(*args, **named)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down what is done to tensors without memory."""

    def __init__(self, weights: DeferredWeights) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        outputs = func(*args, **kwargs)
        if self.paused:
            return outputs
        inputs = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        if any(_is_meta(tensor) for tensor in (*inputs, *_tensors(outputs))):
            self._note(func, args, kwargs, inputs, outputs)
        return outputs

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], inputs: list[Tensor], outputs: Any) -> None:
        read = {_place_of(tensor).storage for tensor in inputs if _is_meta(tensor)}
        written = _written(func, args, kwargs)
        given = tuple(
            _place_of(tensor) if _is_meta(tensor) and _place_of(tensor).storage not in read else None
            for tensor in _tensors(outputs)
        )
        self._weights.kept_alive += [tensor for tensor in _tensors(outputs) if _is_meta(tensor)]
        name = func.overloadpacket.__name__
        writes = {place.storage for place in (*written, *given) if place is not None}
        if not writes or name in _WITHOUT_CONTENT:
            return
        if name in _OVERWRITING and all(math.prod(p.shape) * p.dtype.itemsize == p.length for p in written):
            read = {_place_of(tensor).storage for tensor in inputs[1:] if _is_meta(tensor)}
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        args, kwargs = tree_map_only(
            Tensor, lambda tensor: _place_of(tensor) if _is_meta(tensor) else tensor.clone(), (args, kwargs)
        )
        generator = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            if read - writes:
                raise UsageError(f"trainer.fsdp.meta_init: the constructor draws numbers that depend on others: {func}")
            generator = torch.get_rng_state()
        self._add(_Step(func, args, kwargs, given, frozenset(read), frozenset(writes), generator))

    def note_draw(self, function: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Take down a function that fills a tensor with random numbers, as one operation."""
        place = _place_of(tensor)
        given, writes = (None,), frozenset({place.storage})
        self._add(_Step(function, (place, *args), kwargs, given, frozenset(), writes, torch.get_rng_state()))
        return tensor

    def _add(self, step: _Step) -> None:
        if step.generator is not None:
            self.paused = True
            step.run({})  # the generator moves on as if the weight were there
            self.paused = False
        self._weights.steps.append(step)


@contextmanager
def _truncated_draws(recorder: _Recorder) -> Iterator[None]:
    """Meanwhile torch's truncated normal distribution, which draws until all numbers are within, is one operation."""
    original = init._no_grad_trunc_normal_

    def draw(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if _is_meta(tensor):
            return recorder.note_draw(original, tensor, *args, **kwargs)
        return original(tensor, *args, **kwargs)

    init._no_grad_trunc_normal_ = draw
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = original


def _is_meta(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"


def _place_of(tensor: Tensor) -> _Place:
    """How a tensor on the meta device lies in its memory."""
    storage = tensor.untyped_storage()
    return _Place(
        storage._cdata, storage.nbytes(), tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[_Place]:
    """The arguments that an operation changes."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if argument.kwarg_only or position >= len(args) else args[position]
            written += [_place_of(tensor) for tensor in tree_leaves(value) if isinstance(tensor, Tensor)]
    return written


def _tensors(outputs: Any) -> list[Tensor]:
    return [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers of a model under all their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def copy_piece(whole: Tensor, target: Tensor) -> None:
    """Copy a tensor into one of its shape, or into the piece of a sharded one that lies here."""
    with torch.no_grad():
        if not hasattr(target, "__create_chunk_list__"):
            target.copy_(whole)
            return
        for chunk in target.__create_chunk_list__():
            index = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            target.to_local().copy_(whole[index])  # type: ignore[attr-defined]
