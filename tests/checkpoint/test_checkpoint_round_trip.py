"""What is saved is given back, type for type and bit for bit."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_states import assert_same, save, store_in, through_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flambeau.checkpoint.tree import MAX_DEPTH
from flambeau.errors import CheckpointError

TORCH_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip
SHAPES = [(), (0,), (3, 0, 2), (1,), (5,), (2, 3), (2, 3, 4, 5)]


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bits, so that NaN payloads and subnormals are among them; a bool has only two."""
    size = torch.empty(0, dtype=dtype).element_size()
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    return torch.randint(0, 256, (*shape, size), dtype=torch.uint8).view(dtype).reshape(shape)


tensors = st.builds(random_tensor, st.sampled_from(TORCH_DTYPES), st.sampled_from(SHAPES))
arrays = hnp.arrays(
    st.one_of(hnp.scalar_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
numbers = st.one_of(st.integers(), st.integers(-(2**5000), 2**5000), st.floats(allow_nan=True, allow_subnormal=True))
text = st.text(st.characters(exclude_categories=()))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    text,
    st.binary(),
    arrays,
    arrays.map(lambda a: a.flat[0] if a.size else 0),
    tensors,
)
keys = st.one_of(text, st.integers(), st.sampled_from(["$tensor", "a.b", "a", "", "__metadata__"]))
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


@given(value=states)
@settings(max_examples=150, deadline=None)
def test_any_state_comes_back_with_its_types_order_and_bits(value: Any) -> None:
    """Nested containers, every number there is, all text, arrays and tensors of all dtypes and shapes."""
    with tempfile.TemporaryDirectory() as folder:
        assert_same(through_disk(Path(folder), value), value)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_a_tensor_of_any_dtype_comes_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Dtypes that safetensors lacks are kept too."""
    tensor = random_tensor(dtype, shape)
    assert_same(through_disk(tmp_path, tensor), tensor)


def test_a_state_dict_keeps_the_versions_of_its_modules(tmp_path: Path) -> None:
    """torch's modules convert states by these versions when they load them."""
    state = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict()
    got = through_disk(tmp_path, state)
    assert_same(got, state)
    assert_same(got._metadata, state._metadata)  # type: ignore[attr-defined]


def test_views_of_one_storage_come_back_with_their_own_elements(tmp_path: Path) -> None:
    """Slices, transposes, expansions and tied tensors are each saved as what they show."""
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "base": base, "row": base[1], "column": base[:, 2], "stepped": base[::2, ::3], "transposed": base.t(),
        "expanded": base[0].expand(3, 6), "tied": base, "conjugate": torch.tensor([1 + 2j]).conj(),
    }  # fmt: skip
    assert_same(through_disk(tmp_path, views), views)


def test_a_dense_tensor_keeps_its_memory_order(tmp_path: Path) -> None:
    """Fused optimizers walk over weight and state side by side in memory: both must lie in the same order."""
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    got = through_disk(tmp_path, {"plain": torch.randn(2, 3), "channels_last": tensor, "transposed": tensor[0, 0].t()})
    assert got["plain"].is_contiguous()
    assert got["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert got["transposed"].stride() == tensor[0, 0].t().stride() or not tensor[0, 0].t().is_contiguous()
    assert_same(got["channels_last"], tensor)


def test_a_resumed_fused_optimizer_on_channels_last_weights_takes_the_same_steps(tmp_path: Path) -> None:
    """The memory order matters end to end: weights after five more steps are equal bit for bit."""

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)

    def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            net(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()

    net, optimizer = build()
    train(net, optimizer, range(5))
    store = store_in(tmp_path)
    store.save(5, {"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    train(net, optimizer, range(5, 10))  # while the save is under way
    store.close()
    other, other_optimizer = build()
    state = store_in(tmp_path).at(5).load()
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    train(other, other_optimizer, range(5, 10))
    assert_same(other.state_dict(), net.state_dict())


def test_what_is_loaded_is_the_callers_own_memory(tmp_path: Path) -> None:
    """Tensors and arrays may be written, and stay as they are when the checkpoint is removed."""
    store = store_in(tmp_path, keep_last=1)
    save(store, 1, {"t": torch.ones(1000), "a": np.ones(1000)})
    state = store.at(1).load()
    save(store, 2)
    state["t"] += 1
    state["a"] += 1
    assert state["t"].sum() == state["a"].sum() == 2000


def test_a_parameter_comes_back_as_a_plain_tensor(tmp_path: Path) -> None:
    """`requires_grad` belongs to the module, not to the saved weight."""
    got = through_disk(tmp_path, torch.nn.Parameter(torch.ones(2)))
    assert type(got) is torch.Tensor
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Path("x"), "pathlib"),
        ({1, 2}, "builtins.set"),
        (object(), "builtins.object"),
        (np.array([object()]), "numpy.ndarray"),
        (torch.Size([1]), "torch.Size"),
        (torch.eye(2).to_sparse(), "torch.Tensor"),
        (torch.empty(2, device="meta"), "meta device"),
    ],
    ids=repr,
)
def test_a_value_that_could_not_come_back_is_refused_with_its_path(tmp_path: Path, value: Any, named: str) -> None:
    """At once, in the training thread, before anything is written."""
    store = store_in(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        store.save(1, {"callbacks": {"mine": [0, value]}})
    assert "state['callbacks']['mine'][1]" in str(raised.value)
    assert named in str(raised.value)
    assert not store.folder.exists()


def test_a_key_that_could_not_come_back_is_refused(tmp_path: Path) -> None:
    """True would come back as 1."""
    with pytest.raises(CheckpointError, match=r"state\['x'\] has the key True"):
        store_in(tmp_path).save(1, {"x": {True: 1}})


def test_a_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    """Instead of a RecursionError with a page of frames."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="contains itself"):
        store_in(tmp_path).save(1, {"x": loop})


def test_a_state_may_be_nested_as_deep_as_is_promised(tmp_path: Path) -> None:
    """In the form that takes the most levels of JSON."""
    state: Any = 0
    for level in range(MAX_DEPTH):
        state = {level: state}
    assert_same(through_disk(tmp_path, state), state)


def test_parts_are_loaded_by_name(tmp_path: Path) -> None:
    """Evaluation needs the weights and not the optimizer: its file is not read."""
    store = store_in(tmp_path)
    save(store, 1, {"model": {"w": torch.ones(2)}, "ema": None, "optimizer": {"m": torch.zeros(2)}})
    checkpoint = store.at(1)
    (checkpoint.path / "state.safetensors").unlink()
    assert list(checkpoint.load("model", "ema")) == ["model", "ema"]
    with pytest.raises(CheckpointError, match=r"no part 'modle'\n  it holds 'model', 'ema', 'optimizer'"):
        checkpoint.load("modle")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        checkpoint.load()


def test_any_program_reads_the_weights_under_their_plain_names(tmp_path: Path) -> None:
    """The safetensors library alone loads `model.safetensors` and `ema.safetensors` into a module."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(5, 4)
            self.head = torch.nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            self.norm = torch.nn.BatchNorm1d(4).bfloat16()
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("phase", torch.randn(2, dtype=torch.complex64))
            self.register_buffer("transposed", torch.randn(2, 3).t())

    net = Tied()
    store = store_in(tmp_path)
    save(store, 1, {"model": net.state_dict(), "ema": net.state_dict(), "optimizer": {"x": torch.ones(1)}})
    for name in ("model", "ema"):
        file = store.at(1).path / f"{name}.safetensors"
        other = Tied()
        other.load_state_dict(load_file(file), strict=True)
        assert_same(other.state_dict(), net.state_dict())
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_the_snapshot_is_of_the_moment_of_the_save(tmp_path: Path) -> None:
    """Training writes over its weights while they are being saved."""
    weight = torch.zeros(1_000_000)
    array = np.zeros(1000)
    store = store_in(tmp_path)
    for step in range(3):
        weight.fill_(step)
        array.fill(step)
        store.save(step, {"model": {"weight": weight}, "a": array}, score=-step)
        weight.fill_(-1)
        array.fill(-1)
    store.wait()
    for step in (0, 1, 2):
        state = store.at(step).load()
        assert (state["model"]["weight"] == step).all()
        assert (state["a"] == step).all()


def test_the_memory_of_the_copies_is_kept_and_follows_the_state(tmp_path: Path) -> None:
    """Shapes, dtypes and names may change between saves, and tensors may become tied or untied."""
    store = store_in(tmp_path, keep_last=10)
    states = [
        {"a": torch.ones(3), "b": torch.zeros(3)},
        {"a": torch.ones(4), "b": torch.zeros(3)},
        {"a": torch.ones(4, dtype=torch.int8), "b": np.zeros(3)},
        (lambda tied: {"a": tied, "b": tied})(torch.full((4,), 7.0)),
        {"b": torch.full((4,), 8.0), "a": torch.full((4,), 9.0)},
        {"c": torch.ones(1)},
    ]
    for step, state in enumerate(states):
        save(store, step, {"x": state})
    for step, state in enumerate(states):
        assert_same(store.at(step).load()["x"], state)


def test_a_save_under_inference_mode_does_not_spoil_the_next(tmp_path: Path) -> None:
    """The kept memory is ordinary memory whatever mode the first save met."""
    store = store_in(tmp_path)
    weight = torch.ones(3, requires_grad=True)
    with torch.inference_mode():
        save(store, 1, {"w": weight})
    save(store, 2, {"w": weight})
    assert_same(store.at(2).load()["w"], torch.ones(3))


@pytest.mark.gpu
def test_tensors_of_a_gpu_are_copied_at_once_and_can_go_back_there(tmp_path: Path) -> None:
    """Work queued before the save is in the copy, work queued after it is not."""
    store = store_in(tmp_path, keep_last=3)
    weight = torch.zeros(4096, 4096, device="cuda")
    for step in range(3):
        for _ in range(100):
            weight += 1
        store.save(step, {"model": {"weight": weight}, "cpu": torch.ones(2)}, score=-step)
        weight += 1000
        weight -= 1000
    store.close()
    for step in (0, 1, 2):
        state = store.at(step).load(device="cuda")
        assert state["model"]["weight"].is_cuda
        assert bool((state["model"]["weight"] == 100 * (step + 1)).all())
