"""What a run writes down holds no secrets."""

from __future__ import annotations

import pytest

from flambeau.run_folder import mask_command, mask_values


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train", "lenet", "lr=1"], ["train", "lenet", "lr=1"]),
        (["w.api_key=abc"], ["w.api_key=***"]),
        (["--api-key=abc", "x"], ["--api-key=***", "x"]),
        (["--api-key", "abc", "x"], ["--api-key", "***", "x"]),
        (["--token", "--verbose"], ["--token", "--verbose"]),
        (["--max-tokens", "5"], ["--max-tokens", "5"]),
        (["password=a=b\nc"], ["password=***"]),
        (
            ["tracking={wandb: {api_key: abc, entity: me}}"],
            ["tracking={wandb: {api_key: ***, entity: me}}"],
        ),
        (["t={'token': 'a, b}', n: 1}"], ["t={'token': ***, n: 1}"]),
        (["url=https://me:pass@host/x"], ["url=https://me:***@host/x"]),
        (["password="], ["password="]),
    ],
)
def test_a_command_is_written_without_its_secrets(given: list[str], expected: list[str]) -> None:
    """And otherwise as it was."""
    masked = mask_command(given)
    assert [argument.replace('"', "'") for argument in masked] == expected


def test_nested_values_are_masked_and_left_unchanged_themselves() -> None:
    """For trackers: at any depth, in lists too; what is empty shows as empty."""
    values = {"a": [{"token": "x", "n": 1}], "password": None, "secret": {"deep": 1}, "u": "ftp://a:b@c"}
    masked = mask_values(values)
    assert masked == {
        "a": [{"token": "***", "n": 1}],
        "password": None,
        "secret": "***",
        "u": "ftp://a:***@c",
    }
    assert values["a"] == [{"token": "x", "n": 1}]
