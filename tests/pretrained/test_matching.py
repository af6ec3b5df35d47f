"""Which tensor of a source goes where in a model, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flambeau.config.sections import PretrainedSettings
from flambeau.errors import UsageError
from flambeau.pretrained.matching import Report, by_module, check_missing, covers, match
from flambeau.pretrained.names import find_renaming
from flambeau.pretrained.weights import Stored


def tensors(**shapes: tuple[int, ...]) -> dict[str, Stored]:
    """Tensors by name, `__` for a dot."""
    return {name.replace("__", "."): Stored(shape, torch.float32) for name, shape in shapes.items()}


MODEL = tensors(backbone__conv__weight=(4, 3, 3, 3), backbone__conv__bias=(4,), head__weight=(10, 4), head__bias=(10,))
BACKBONE = {"conv.weight": Stored((4, 3, 3, 3), torch.float32), "conv.bias": Stored((4,), torch.float32)}


def matching(stored: dict[str, Stored], model: dict[str, Stored] = MODEL, **settings: Any) -> Report:
    part = PretrainedSettings(path="file", **settings)
    return check_missing([match(stored, model, part, origin="file")], [part])[0]


def renamed(names: dict[str, Stored], change: Any) -> dict[str, Stored]:
    return {change(name): stored for name, stored in names.items()}


class TestNames:
    def test_equal_names_match(self) -> None:
        report = matching(MODEL)
        assert report.matched == {name: name for name in MODEL}
        assert not report.missing and not report.unexpected and not report.wrapper

    @pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
    def test_a_wrappers_prefix_is_recognised_and_said(self, wrapper: str) -> None:
        """DistributedDataParallel's, torch.compile's, and that of a class that holds the model."""
        report = matching(renamed(MODEL, lambda name: wrapper + name))
        assert report.matched == {name: wrapper + name for name in MODEL}
        assert f"names without '{wrapper}'" in str(report)

    def test_a_prefix_that_the_model_has_too_is_none(self) -> None:
        model = renamed(MODEL, lambda name: f"model.{name}")
        assert matching(model, model).wrapper == ""

    def test_wrappers_of_single_modules_are_seen_through(self) -> None:
        stored = renamed(MODEL, lambda name: name.replace("backbone.", "backbone._orig_mod."))
        assert len(matching(stored).matched) == 4

    def test_map_replaces_a_beginning(self) -> None:
        stored = renamed(MODEL, lambda name: name.replace("backbone.", "encoder."))
        assert len(matching(stored, map={"encoder.": "backbone."}).matched) == 4

    def test_map_may_be_a_regular_expression_with_groups(self) -> None:
        stored = renamed(MODEL, lambda name: "net_" + name)
        report = matching(stored, map={r"^net_(\w+)\.": r"\1."})
        assert report.matched["head.bias"] == "net_head.bias" and len(report.matched) == 4

    def test_map_sees_names_as_the_file_has_them_and_without_their_wrapper(self) -> None:
        stored = renamed(MODEL, lambda name: "module." + name.replace("backbone.", "encoder."))
        assert len(matching(stored, map={"encoder.": "backbone."}).matched) == 4
        assert len(matching(stored, map={"module.encoder.": "backbone."}).matched) == 4

    def test_the_first_rule_that_fits_is_taken(self) -> None:
        renaming = find_renaming(["a.b.c"], ["x.c"], {"a.b.": "x.", "a.": "y."})
        assert renaming("a.b.c") == "x.c"

    def test_into_puts_the_names_within_a_module(self) -> None:
        report = matching(BACKBONE, into="backbone")
        assert report.matched == {"backbone.conv.weight": "conv.weight", "backbone.conv.bias": "conv.bias"}
        assert not report.missing, "what lies outside of it is not asked for"

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"map": {"encodr.": "backbone."}}, "fits no name"),
            ({"map": {"^(": ""}}, "is no regular expression"),
            ({"into": "bakbone"}, "no module 'bakbone'"),
            ({"include": ["bakbone"]}, "'bakbone' of `include` fits no name"),
            ({"exclude": ["hed.*"]}, "'hed.*' of `exclude` fits no name"),
        ],
    )
    def test_a_setting_without_effect_is_refused_with_the_nearest_names(
        self, settings: dict[str, Any], text: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            matching(MODEL, **settings)
        assert text in str(caught.value)

    def test_two_names_that_become_one_are_refused(self) -> None:
        with pytest.raises(UsageError, match="would both become"):
            matching({**MODEL, "old.bias": Stored((10,), torch.float32)}, map={"old.": "head."})

    @given(st.sets(st.text("abc.", min_size=1, max_size=6)), st.sampled_from(["module.", "_orig_mod.", "model."]))
    def test_what_a_wrapper_adds_is_taken_away_again(self, names: set[str], wrapper: str) -> None:
        """For any names: those of the wrapped model match as those of the model itself."""
        stored = {wrapper + name: Stored((1,), torch.float32) for name in names}
        model = {name: Stored((1,), torch.float32) for name in names}
        if names:
            assert matching(stored, model).matched == {name: wrapper + name for name in names}


class TestWhatDoesNotFit:
    def test_a_missing_name_is_an_error_that_names_the_module_and_the_remedy(self) -> None:
        stored = {name: item for name, item in MODEL.items() if not name.startswith("head")}
        with pytest.raises(UsageError) as caught:
            matching(stored)
        assert "lacks 2 tensors of the model: head (2)" in str(caught.value)
        assert "exclude: [head]" in str(caught.value)

    def test_an_unexpected_name_is_an_error_with_the_nearest_name(self) -> None:
        stored = renamed(MODEL, lambda name: name.replace("head", "heads"))
        with pytest.raises(UsageError, match=r"the nearest of 'heads.weight' is 'head.weight'"):
            matching(stored)

    def test_without_strict_they_are_left_out_and_reported_by_module(self) -> None:
        stored = {**renamed(MODEL, lambda name: name.replace("head", "classifier"))}
        report = matching(stored, strict=False)
        assert sorted(report.matched) == ["backbone.conv.bias", "backbone.conv.weight"]
        lines = [" ".join(line.split()) for line in report.lines()[1:]]
        assert lines == ["matched 2 backbone (2)", "missing 2 head (2)", "unexpected 2 classifier (2)"]

    def test_exclude_makes_a_name_neither_missing_nor_unexpected(self) -> None:
        assert sorted(matching(MODEL, exclude=["head.*"]).matched) == ["backbone.conv.bias", "backbone.conv.weight"]
        others = {name: item for name, item in MODEL.items() if not name.startswith("head")}
        assert len(matching(others, exclude=["head"]).matched) == 2
        extra = {**MODEL, "optimizer.step": Stored((), torch.int64)}
        assert len(matching(extra, exclude=["optimizer"]).matched) == 4

    def test_include_asks_for_nothing_else(self) -> None:
        others = {name: item for name, item in MODEL.items() if not name.startswith("head")}
        assert len(matching(others, include=["backbone"]).matched) == 2

    def test_another_head_is_named_with_the_remedy(self) -> None:
        stored = {**MODEL, **tensors(head__weight=(1000, 4), head__bias=(1000,))}
        with pytest.raises(UsageError) as caught:
            matching(stored)
        text = str(caught.value)
        assert "head.weight: (1000, 4) there, (10, 4) in the model" in text
        assert "'head' gives 1000 outputs (classes) there and 10 in the model" in text
        assert "exclude: [head]" in text
        report = matching(stored, strict=False)
        assert [item.name for item in report.mismatched] == ["head.weight", "head.bias"]
        assert "other shape     2  head (2)" in str(report)

    def test_a_first_convolution_of_other_images_is_named(self) -> None:
        stored = {**MODEL, **tensors(backbone__conv__weight=(4, 1, 3, 3))}
        with pytest.raises(UsageError) as caught:
            matching(stored)
        assert "'backbone.conv' takes 1 channels there and 3 in the model" in str(caught.value)
        assert "exclude: [backbone.conv.weight]" in str(caught.value)

    def test_whole_numbers_do_not_become_weights(self) -> None:
        stored = {**MODEL, "head.bias": Stored((10,), torch.int64)}
        with pytest.raises(UsageError, match=r"torch.int64 there, torch.float32 in the model"):
            matching(stored)
        assert len(matching({**MODEL, "head.bias": Stored((10,), torch.bfloat16)}).matched) == 4

    @pytest.mark.parametrize("strict", [True, False])
    def test_nothing_matched_is_always_an_error_with_what_would_help(self, strict: bool) -> None:
        stored = {name.removeprefix("backbone."): item for name, item in MODEL.items() if "conv" in name}
        with pytest.raises(UsageError, match=r"would make 2 of them fit: into: backbone"):
            matching(stored, strict=strict)
        other = renamed(MODEL, lambda name: f"net.{name}")
        with pytest.raises(UsageError, match=r'would make 4 of them fit: map: \{"net.": ""\}'):
            matching(other, strict=strict)
        with pytest.raises(UsageError, match="holds no tensors"):
            matching({}, strict=strict)

    def test_a_counter_of_batch_norm_may_be_missing(self) -> None:
        """Files from before torch 0.4.1 have none."""
        counter = {"norm.num_batches_tracked": Stored((), torch.int64)}
        assert not matching(MODEL, {**MODEL, **counter}).missing

    def test_the_other_name_of_a_tied_weight_may_be_missing(self) -> None:
        """safetensors files hold a tied weight once."""
        model = tensors(embed__weight=(5, 2), out__weight=(5, 2))
        part = PretrainedSettings(path="file")
        both = ["embed.weight", "out.weight"]
        aliases = dict.fromkeys(both, both)
        report = match(tensors(embed__weight=(5, 2)), model, part, origin="file", aliases=aliases)
        assert not report.missing


class TestSeveralParts:
    def parts(self, *parts: tuple[dict[str, Stored], dict[str, Any]]) -> list[Report]:
        settings = [PretrainedSettings(path=str(number), **own) for number, (_, own) in enumerate(parts)]
        reports = [
            match(stored, MODEL, own, origin=f"file {number}")
            for number, ((stored, _), own) in enumerate(zip(parts, settings, strict=True))
        ]
        return check_missing(reports, settings)

    def test_what_one_leaves_out_may_come_from_another(self) -> None:
        head = tensors(head__weight=(10, 4), head__bias=(10,))
        reports = self.parts((BACKBONE, {"map": {"conv.": "backbone.conv."}}), (head, {}))
        assert [len(report.matched) for report in reports] == [2, 2]
        assert not any(report.missing for report in reports)

    def test_overlapping_parts_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"'head.weight' comes from file 0 and from file 1"):
            self.parts((MODEL, {}), (MODEL, {"include": ["head"]}))


class TestByModule:
    @pytest.mark.parametrize(
        ("names", "text"),
        [
            (["a.b.c", "a.b.d"], "a.b (2)"),
            (["a.b.c", "a.b.d", "a.e"], "a (3)"),
            (["a.b.c"], "a.b.c"),
            (["f"], "f"),
        ],
    )
    def test_names_collapse_to_modules_that_hold_nothing_else(self, names: list[str], text: str) -> None:
        assert by_module(names, ["a.b.c", "a.b.d", "a.e", "f"]) == text

    @given(st.sets(st.from_regex(r"\A[ab](\.[ab]){0,3}\Z"), min_size=1), st.data())
    def test_the_patterns_take_these_names_and_no_others(self, everything: set[str], data: st.DataObject) -> None:
        """For any names that can be those of one model's tensors."""
        everything = {name for name in everything if not any(o.startswith(f"{name}.") for o in everything)}
        names = sorted(data.draw(st.sets(st.sampled_from(sorted(everything)), min_size=1)))
        patterns = [text.partition(" (")[0] for text in by_module(names, everything, shown=99).split(", ")]
        taken = {name for name in everything if any(covers(pattern, name) for pattern in patterns)}
        assert taken == set(names)
