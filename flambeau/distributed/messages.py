"""Nested values with tensors, from every process to every process, without pickle."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load, save

from flambeau.checkpoint.tree import decode, encode
from flambeau.runtime.world import World


def gather_state(world: World, state: Any) -> list[Any]:
    """The nested values of all processes in the order of their ranks, in every process; tensors on the CPU.

    Args:
        state: what a checkpoint can hold, see `flambeau.checkpoint.tree`.
    """
    if world.size == 1:
        return [state]
    tree, leaves = encode({"state": state})
    tensors = {
        leaf.name: torch.as_tensor(leaf.value).detach().cpu().clone(memory_format=torch.contiguous_format)
        for leaf in leaves
    }
    texts = world.gather_bytes(json.dumps(tree).encode())
    files = world.gather_bytes(save(tensors))
    return [_decoded(text, file) for text, file in zip(texts, files, strict=True)]


def _decoded(text: bytes, file: bytes) -> Any:
    tensors = load(file)

    def leaf(node: dict[str, Any]) -> Any:
        return tensors[node["$tensor"]] if "$tensor" in node else tensors[node["$array"]].numpy()

    return decode(json.loads(text)["state"], leaf)
