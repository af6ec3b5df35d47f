"""Activation checkpointing: blocks whose activations are not kept, but computed again in the backward pass.

Chen et al., 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Sequence[nn.Module]) -> None:
    """Have each block keep only its inputs; bits of results and gradients stay what they are.

    Dropout draws the same numbers again, and batch norms count a batch once in their running statistics.
    """
    for block in blocks:
        with_norms = any(isinstance(module, _NormBase) for module in block.modules())
        contexts = {"context_fn": partial(_contexts, block)} if with_norms else {}
        if "forward" not in vars(block):
            # On the instance, so that no name of a parameter changes. Partials are copied together with the module.
            block.forward = partial(_recomputed, block.forward, contexts)


def _recomputed(forward: Callable[..., Any], contexts: Mapping[str, Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **contexts, **named)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around a block's forward pass, and around the same again in the backward pass."""
    return nullcontext(), _uncounted(block)


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Batch norms follow the batch in copies of their running statistics, which saw it in the forward pass."""
    norms = [module for module in block.modules() if isinstance(module, _NormBase) and module.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update(
            {name: None if buffer is None else buffer.clone() for name, buffer in norm._buffers.items()}
        )
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
