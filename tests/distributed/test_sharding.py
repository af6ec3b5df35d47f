"""A model in pieces trains as whole copies do, and as one process does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # once, for all processes that are forked from this one
from support.processes import together
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Trainer
from flambeau.config.sections import ClipSettings, EmaSettings, FsdpSettings, TrainerSettings
from flambeau.distributed.deferred import build_on_meta
from flambeau.distributed.sharding import find_blocks, is_sharded_model, prepare_model, twin_of
from flambeau.errors import UsageError
from flambeau.metrics import Accuracy
from flambeau.optim import clip_gradient_norm
from flambeau.runtime.world import World, current_world
from flambeau.training.guard import NonFiniteError, first_bad_gradient, first_bad_weight, weights_are_finite

TOLERANCE = 1e-10
"""Largest relative difference of weights in float64: what another order of summation makes."""


class Block(nn.Module):
    """A residual layer with a buffer that no checkpoint holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.register_buffer("scale", torch.full((width,), 0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = x + torch.tanh(self.linear(self.norm(x))) * self.scale.to(x.dtype)
        return mixed


class Net(nn.Module):
    """Sizes that no number of processes divides, a tied weight, and a parameter of one element."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head, self.other = nn.Linear(width, 4, bias=False), nn.Linear(width, 4, bias=False)
        self.other.weight = self.head.weight
        self.temperature = nn.Parameter(torch.ones(1))

    def fsdp_blocks(self) -> nn.ModuleList:
        return self.blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        answer: torch.Tensor = (self.head(x) + self.other(x.square())) * self.temperature
        return answer


def samples(size: int, *, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 6, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 4, (size,), generator=generator))


def network() -> nn.Module:
    torch.manual_seed(1)
    return Net()


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers of a model, gathered."""
    state = model.state_dict()
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for name, t in state.items()}


def train(options: dict[str, Any], make: Callable[[], nn.Module] = network, size: int = 37) -> Any:
    """Weights and records after a run of 37 samples in batches of 8, of which the last of an epoch has 5."""
    trainer = Trainer(
        make(),
        samples(size),
        nn.CrossEntropyLoss(),
        device="cpu",
        val_data=samples(21, seed=4),
        metrics={"accuracy": Accuracy()},
        **{"epochs": 3, "batch_size": 8, "precision": "fp64", "progress": False, "log_every": 5, **options},
    )
    assert is_sharded_model(trainer.model) == (trainer.settings.fsdp is not None and trainer.world.size > 1)
    trainer.fit()
    average = whole(trainer.ema.model) if trainer.ema is not None else {}
    return whole(trainer.model), average, trainer.recorder.history


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-300)
        assert difference <= TOLERANCE, f"{name} differs by {difference:.3g}"


EVERYTHING = {"clip_norm": 0.05, "ema": EmaSettings(decay=0.8)}


@pytest.mark.parametrize(
    ("ranks", "accumulate"),
    [(2, 1), (3, 4), pytest.param(3, 1, marks=pytest.mark.slow), pytest.param(2, 4, marks=pytest.mark.slow)],
)
def test_sharded_and_copied_training_end_as_one_process_does(ranks: int, accumulate: int) -> None:
    """FSDP2, DDP and one process: AdamW, clipping that bites, ragged batches, the average and all scores."""
    expected, average, history = train(EVERYTHING)
    assert max(record.get("train/grad_norm", 0) for record in history) > EVERYTHING["clip_norm"]
    for fsdp in (FsdpSettings(), None):
        for weights, ema, records in together(ranks, train, {**EVERYTHING, "accumulate": accumulate, "fsdp": fsdp}):
            assert_close(weights, expected)
            assert_close(ema, average)
            for record, wanted in zip(records, history, strict=True):
                assert {k: v for k, v in record.items() if k != "time"} == pytest.approx(
                    {k: v for k, v in wanted.items() if k != "time"}, rel=1e-10
                )


WAYS = {
    "blocks by class": FsdpSettings(blocks=["Block"]),
    "blocks within blocks": FsdpSettings(blocks=["LayerNorm", "Block"]),
    "weights kept for the backward pass": FsdpSettings(reshard_after_forward=False),
    "activation checkpointing": FsdpSettings(activation_checkpointing=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_how_a_model_is_sharded_changes_no_number(way: str) -> None:
    """Other blocks, weights that stay, activations computed twice."""
    expected, average, _ = train(EVERYTHING)
    for weights, ema, _ in together(2, train, {**EVERYTHING, "fsdp": WAYS[way]}):
        assert_close(weights, expected)
        assert_close(ema, average)


@pytest.mark.slow
def test_compiled_blocks_change_no_number() -> None:
    """Compiled one by one, with and without activations computed twice."""
    expected, _, _ = train(EVERYTHING)
    for again in (False, True):
        fsdp = FsdpSettings(compile_blocks=True, activation_checkpointing=again)
        for weights, _, _ in together(2, train, {**EVERYTHING, "fsdp": fsdp}):
            assert_close(weights, expected)


def normalised() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def test_batch_norm_is_over_the_global_batch_of_a_sharded_model_too() -> None:
    """26 samples: of the last batch's 2, the third process has none."""
    expected, _, _ = train({}, normalised, 26)
    for weights, _, _ in together(3, train, {"fsdp": FsdpSettings(blocks=["Linear"])}, normalised, 26):
        assert_close(weights, expected)


def evaluate() -> list[dict[str, float]]:
    scores = []
    for size, batch in ((97, 16), (97, 64), (5, 50)):
        trainer = Trainer(
            network(), samples(8), nn.CrossEntropyLoss(), steps=1, device="cpu", eval_batch_size=batch, progress=False,
            metrics={"accuracy": Accuracy()}, fsdp=FsdpSettings(), precision="fp64",
        )  # fmt: skip
        scores.append(trainer.evaluate(samples(size, seed=5)))
    return scores


def test_evaluation_of_a_sharded_model_does_not_wait_for_a_batch_that_does_not_come() -> None:
    """Processes with fewer batches, or with none at all, take part in gathering the weights."""
    expected = evaluate()
    for ranks in (2, 3):
        for scores in together(ranks, evaluate):
            for found, wanted in zip(scores, expected, strict=True):
                assert found == pytest.approx(wanted, rel=1e-12)


def evaluate_twice() -> tuple[list[bool], bool]:
    """Whether the average's output moves when its pieces do; and whether the model's own does."""
    trainer = Trainer(
        network(), samples(8), nn.CrossEntropyLoss(), steps=1, device="cpu", fsdp=FsdpSettings(), progress=False,
        ema=EmaSettings(decay=0.0),
    )  # fmt: skip
    assert trainer.ema is not None
    scores = []
    for _ in range(3):
        scores.append(trainer.evaluate(samples(16), model=trainer.ema.model)["loss"])
        with torch.no_grad():
            for parameter in trainer.with_gradient:
                parameter.mul_(1.5)
        trainer.ema.update(1)
    same = trainer.evaluate(samples(16), model=trainer.ema.model) == trainer.evaluate(samples(16))
    return [one != next_one for one, next_one in itertools.pairwise(scores)], same


def test_an_evaluation_leaves_no_gathered_weights_behind_for_the_next() -> None:
    """The root's weights stay gathered after a forward pass without a backward pass; they would be stale."""
    for moved, same in together(2, evaluate_twice):
        assert moved == [True, True]
        assert same


class Drawn(nn.Module):
    """A constructor that initialises in every way that comes to mind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=3)
        self.position = nn.Parameter(torch.randn(5, 8) * 0.1)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.recurrent, self.norm = nn.LSTM(4, 5), nn.BatchNorm1d(4)
        self.conv = nn.Conv1d(6, 6, 3)
        self.register_buffer("mask", torch.tril(torch.ones(5, 5)))
        self.register_buffer("mean", torch.tensor([0.4, 0.5]), persistent=False)
        waves = torch.zeros(6, 4)
        waves[:, 0::2] = torch.sin(torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.1]))
        self.register_buffer("waves", waves)
        self.drop = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.gamma = nn.Parameter(1e-3 * torch.ones(8))
        self.inits = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        for init, linear in zip(
            (nn.init.orthogonal_, nn.init.trunc_normal_, nn.init.sparse_, nn.init.eye_), self.inits, strict=True
        ):
            init(linear.weight, *([0.3] if init is nn.init.sparse_ else []))
        nn.init.dirac_(self.conv.weight)
        self.apply(self._again)
        with torch.no_grad():
            self.position[1].mul_(2.0)
            self.inits[0].weight[2] = self.inits[0].weight[1] * 2
            self.inits[1].bias.copy_(torch.arange(6.0))

    def _again(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and module.in_features == 16:
            nn.init.normal_(module.weight, 0.0, 0.02 / math.sqrt(2))


def test_weights_of_a_model_built_without_memory_are_the_same_bits() -> None:
    """Whatever the constructor draws, in whatever order; the random generator goes on as it would have."""
    torch.manual_seed(3)
    expected, after = Drawn(), torch.get_rng_state()
    torch.manual_seed(3)
    model, weights = build_on_meta(Drawn)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(parameter.is_meta for parameter in model.parameters())
    weights.fill(model, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), after)
    assert model.head.weight is model.embedding.weight
    for (name, value), (same, other) in zip(
        [*expected.named_parameters(), *expected.named_buffers()],
        [*model.named_parameters(), *model.named_buffers()],
        strict=True,
    ):
        assert name == same
        assert torch.equal(value, other), name


def test_a_constructor_that_looks_at_its_weights_is_refused_without_memory() -> None:
    """There is nothing to look at."""

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.bound = self.linear.weight.abs().max().item()

    with pytest.raises(UsageError, match="needs the values of its weights"):
        build_on_meta(Looking)


def built_on_meta() -> tuple[bool, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A sharded model built without memory: whether no process ever had a whole weight for long, and its weights."""
    torch.manual_seed(1)
    model, weights = build_on_meta(Net)
    model.double()
    settings = TrainerSettings(fsdp=FsdpSettings(meta_init=True), steps=1)
    model = prepare_model(model, settings, current_world(), torch.device("cpu"), weights)
    pieces = all(p.to_local().untyped_storage().nbytes() < p.numel() * 8 for p in model.parameters() if p.ndim > 1)
    twin = twin_of(model)
    scales = {name: buffer for name, buffer in twin.named_buffers() if name.endswith("scale")}
    return pieces, whole(model), {**whole(twin), **scales}


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_model_built_without_memory_and_sharded_has_the_weights_of_one_process(ranks: int) -> None:
    """At any number of processes; and so has its twin, that the average is made from."""
    expected = {name: value.double() for name, value in network().state_dict().items()}
    for pieces, weights, twin in together(ranks, built_on_meta):
        assert pieces
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        assert all(torch.equal(twin[name], value) for name, value in expected.items())
        assert torch.equal(twin["blocks.0.scale"], torch.full((7,), 0.5, dtype=torch.float64))


def mixed() -> tuple[set[torch.dtype], set[torch.dtype], torch.dtype, bool]:
    """The dtypes that a block computes in and that weights are kept in, of the output, and whether the loss falls."""
    fsdp = FsdpSettings(param_dtype="bf16", reduce_dtype="fp32")
    trainer = Trainer(
        network(), samples(32), nn.CrossEntropyLoss(), steps=30, device="cpu", fsdp=fsdp, progress=False, batch_size=32,
        log_every=1,
    )  # fmt: skip
    seen: set[torch.dtype] = set()
    trainer.model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    outputs = []
    trainer.model.register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    trainer.fit()
    losses = [record["train/loss"] for record in trainer.recorder.history if "train/loss" in record]
    return seen, {p.dtype for p in trainer.model.parameters()}, outputs[0], losses[-1] < losses[0]


def test_mixed_precision_computes_in_bf16_and_keeps_float32() -> None:
    """The criterion gets float32 too."""
    for seen, kept, output, falls in together(2, mixed):
        assert seen == {torch.bfloat16}
        assert kept == {torch.float32}
        assert output == torch.float32
        assert falls


def faults() -> list[Any]:
    """What the guard says of pieces: only process 1 has the bad element."""
    world = current_world()
    settings = TrainerSettings(fsdp=FsdpSettings(), steps=1)
    model = prepare_model(network(), settings, world, torch.device("cpu"))
    said: list[Any] = [weights_are_finite(model), first_bad_weight(model)]
    model(torch.ones(2, 6)).sum().backward()
    norm = clip_gradient_norm(model.parameters(), math.inf).item()
    if world.rank == 1:
        model.blocks[1].linear.weight.grad.to_local()[0] = math.nan
        with torch.no_grad():
            model.blocks[2].norm.weight.to_local()[0] = math.inf
    said += [math.isfinite(norm), math.isfinite(clip_gradient_norm(model.parameters(), math.inf).item())]
    return [*said, first_bad_gradient(model), weights_are_finite(model), first_bad_weight(model)]


def test_all_processes_hear_of_a_number_that_is_not_finite_in_one() -> None:
    """The gradient's norm, the gradient, the weight."""
    for said in together(2, faults):
        gradient = "the gradient of 'blocks.1.linear.weight' holds NaN"
        assert said == [True, None, True, False, gradient, False, "'blocks.2.norm.weight' holds infinite values"]


def poisoned() -> str:
    data = samples(8)
    data.tensors[0][5] = math.nan
    trainer = Trainer(
        network(), data, nn.CrossEntropyLoss(), steps=3, device="cpu", fsdp=FsdpSettings(), progress=False,
        batch_size=8, nan_policy="skip", max_skips=1,
    )  # fmt: skip
    try:
        trainer.fit()
    except NonFiniteError as error:
        return str(error)
    return "nothing was said"


def test_steps_with_a_bad_sample_are_left_out_by_all_processes_together() -> None:
    """One process has the sample; the gradient's norm tells all."""
    for said in together(2, poisoned):
        assert said.startswith("2 steps in a row were left out")


REFUSED = {
    "no module of Net is of a class 'Blokc'\n  the nearest are Block": {"fsdp": FsdpSettings(blocks=["Blokc"])},
    "has no forward pass, and cannot be a block\n  name what it holds: Block": {
        "fsdp": FsdpSettings(blocks=["ModuleList"], activation_checkpointing=True)
    },
    "does not go with fp16": {"fsdp": FsdpSettings(), "precision": "fp16"},
    "use bf16": {"fsdp": FsdpSettings(param_dtype="fp16")},
    "trainer.precision is bf16 and trainer.fsdp.param_dtype is bf16": {
        "fsdp": FsdpSettings(param_dtype="bf16"),
        "precision": "bf16",
    },
    "give trainer.micro_batch a number": {"fsdp": FsdpSettings(), "micro_batch": "auto"},
    "compile each block": {"fsdp": FsdpSettings(), "compile": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_do_not_go_together_are_refused_with_a_way_out(message: str) -> None:
    """Before any work, in every process alike: here there is one, which would shard nothing."""
    with pytest.raises(UsageError) as refusal:
        Trainer(network(), samples(8), nn.CrossEntropyLoss(), steps=1, device="cpu", **REFUSED[message])
    assert message in str(refusal.value)


def refused(which: str) -> str:
    """What is said of a model, or an optimizer, that cannot be sharded."""
    model = network()
    optimizer = None
    if which == "scalar":
        model.register_parameter("scale", nn.Parameter(torch.tensor(0.07)))
    elif which == "order of memory":
        model.head.weight = nn.Parameter(torch.randn(7, 4).T)
    elif which == "blocks":
        model = nn.Sequential(nn.Linear(6, 4))
    elif which == "optimizer":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fsdp = FsdpSettings(
        activation_checkpointing=which == "blocks", blocks=["Linear", "Block"] if which == "tied" else []
    )
    with pytest.raises(UsageError) as refusal:
        Trainer(model, samples(8), nn.CrossEntropyLoss(), optimizer, steps=1, device="cpu", fsdp=fsdp)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("scalar", "the parameter 'scale' has no dimension"),
        ("order of memory", "the memory of the parameter 'head.weight' is not in the order of its dimensions"),
        ("blocks", "trainer.fsdp.activation_checkpointing is for the blocks of the model, and none are named"),
        ("tied", "'head.weight' and 'other.weight' are one parameter, and lie in different blocks"),
        ("optimizer", "the optimizer was made before the model was sharded"),
    ],
)
def test_what_cannot_be_sharded_is_named(which: str, message: str) -> None:
    """By torch's rules, in words for people."""
    assert all(message in said for said in together(2, refused, which))


def test_blocks_within_blocks_come_first_and_the_model_may_name_its_own() -> None:
    """As `fully_shard` wants them: from the inside out."""
    inner = [nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]
    model = nn.Sequential(nn.Sequential(*inner), nn.Linear(2, 2))
    found = find_blocks(model, FsdpSettings(blocks=["Sequential"]))
    assert found == [inner[1], inner[0], model[0]]
    assert find_blocks(Net(), FsdpSettings())[-1].linear.in_features == 7
    assert find_blocks(model, FsdpSettings()) == []


def test_one_process_shards_nothing_and_still_computes_activations_again() -> None:
    """The same configuration runs everywhere; a copy of the model, which tests and averages need, is one of its own."""
    expected, average, _ = train(EVERYTHING)
    weights, ema, _ = train({**EVERYTHING, "fsdp": FsdpSettings(activation_checkpointing=True)})
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert all(torch.equal(ema[name], value) for name, value in average.items())
    model = prepare_model(
        network(), TrainerSettings(fsdp=FsdpSettings(activation_checkpointing=True)), World(), torch.device("cpu")
    )
    twin = twin_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin(torch.ones(1, 6)).abs().sum() > 0


@pytest.mark.slow
def test_gradients_in_pieces_are_clipped_in_groups_as_whole_ones_are() -> None:
    """By norm and by value, each group by itself."""
    clip = [ClipSettings(pattern="blocks.*", norm=0.02), ClipSettings(pattern="head.*", value=0.001)]
    expected, _, history = train({"clip": clip})
    assert max(record.get("train/grad_norm/blocks.*", 0) for record in history) > 0.02
    for weights, _, _ in together(2, train, {"clip": clip, "fsdp": FsdpSettings()}):
        assert_close(weights, expected)
