"""The list of files is the same everywhere, matched on the relative path, and never stale."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.data import listing
from flambeau.data.listing import compile_pattern, list_files
from flambeau.errors import UsageError

PATHS = ["a.jpg", "b.png", "one/a.jpg", "one/two/c.jpg", "one/two/d.JPG", "two/e.txt", ".hidden/f.jpg", "one/.g.jpg"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, all of it a minute old, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in PATHS:
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    settle(tmp_path / "root")
    return tmp_path / "root"


def settle(root: Path) -> None:
    """Let its folders have been as they are for a minute, each a little longer than the one before."""
    now = time.time() - 60
    for place, (folder, _, _) in enumerate(os.walk(root)):
        os.utime(folder, (now - place, now - place))


def listed(root: Path, pattern: str, *, regex: bool = False, **options: Any) -> list[str]:
    return list_files(root, compile_pattern(pattern, regex=regex), **options)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.jpg", ["a.jpg", "one/a.jpg", "one/two/c.jpg"]),
        ("*.jpg", ["a.jpg"]),
        ("*/*.jpg", ["one/a.jpg"]),
        ("one/**", ["one/a.jpg", "one/two/c.jpg", "one/two/d.JPG"]),
        ("**/*.{jpg,png}", ["a.jpg", "b.png", "one/a.jpg", "one/two/c.jpg"]),
        ("**/[cd].*", ["one/two/c.jpg", "one/two/d.JPG"]),
        ("**/[!a].jpg", ["one/two/c.jpg"]),
        ("?.png", ["b.png"]),
        ("**/*", ["a.jpg", "b.png", "one/a.jpg", "one/two/c.jpg", "one/two/d.JPG", "two/e.txt"]),
        ("nothing*", []),
    ],
)
def test_a_glob_is_matched_on_the_relative_path(root: Path, pattern: str, found: list[str]) -> None:
    """Wherever the root lies; names that begin with a dot are left out."""
    assert listed(root, pattern) == found
    assert listed(root, pattern, refresh=True) == found


def test_a_regular_expression_matches_the_whole_relative_path(root: Path) -> None:
    """Neither the file's name alone nor the path from the system's root: both would give other lists."""
    assert listed(root, r"one/(two/)?\w\.jpg", regex=True) == ["one/a.jpg", "one/two/c.jpg"]
    assert listed(root, r"a\.jpg", regex=True) == ["a.jpg"]
    assert listed(root, r"a\.j", regex=True) == []
    assert listed(root, r".*root/.*", regex=True) == []


@given(st.text(alphabet=st.characters(exclude_characters="*?[]{}/,\n\r", exclude_categories=["Cs"]), min_size=1))
def test_other_characters_stand_for_themselves(name: str) -> None:
    """Dots and parentheses too."""
    assert compile_pattern(name, regex=False).fullmatch(name)
    assert not compile_pattern(name, regex=False).fullmatch(name + "x")


def test_what_is_no_pattern_is_refused() -> None:
    """Before the folder is read."""
    with pytest.raises(UsageError, match="no regular expression"):
        compile_pattern("(", regex=True)
    with pytest.raises(UsageError, match="no pattern"):
        compile_pattern("*.{jpg", regex=False)


def test_a_listing_is_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is not walked again; `refresh` does."""
    first = listed(root, "**/*.jpg")
    walked: list[Path] = []
    walk = listing._walk
    monkeypatch.setattr(listing, "_walk", lambda root: walked.append(root) or walk(root))
    assert listed(root, "**/*.jpg") == first and not walked
    listed(root, "**/*.png")
    assert len(walked) == 1
    listed(root, "**/*.jpg", refresh=True)
    assert len(walked) == 2


@pytest.mark.parametrize("folder", ["", "one/two"])
@pytest.mark.parametrize("change", ["new", "gone", "renamed", "new folder"])
def test_a_change_anywhere_is_noticed(root: Path, folder: str, change: str) -> None:
    """Deep below the root too, whose own time does not change."""
    listed(root, "**/*.jpg")
    place = root / folder
    old = next(place.glob("*.jpg"))
    if change == "new":
        (place / "z.jpg").touch()
    elif change == "gone":
        old.unlink()
    elif change == "renamed":
        old.rename(place / "y.jpg")
    else:
        (place / "new").mkdir()
        (place / "new" / "x.jpg").touch()
    fresh = listed(root, "**/*.jpg", refresh=True)
    assert listed(root, "**/*.jpg") == fresh


def test_a_folder_that_is_still_written_to_is_not_remembered(root: Path, tmp_path: Path) -> None:
    """A second change within a tick of its clock would not show."""
    (root / "z.jpg").touch()
    listed(root, "*.jpg")
    assert not list((tmp_path / "cache").rglob("*.json"))
    settle(root)
    listed(root, "*.jpg")
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', "\x00", None])
def test_a_damaged_memory_is_no_memory(root: Path, tmp_path: Path, content: str | None) -> None:
    """Nor is one that names files which the pattern does not match."""
    expected = listed(root, "*.jpg")
    (file,) = (tmp_path / "cache").rglob("*.json")
    if content is None:
        content = json.dumps({**json.loads(file.read_text()), "files": ["../../etc/passwd"]})
    file.write_text(content)
    assert listed(root, "*.jpg") == expected


def test_without_a_place_for_it_nothing_is_remembered(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing fails."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert listed(root, "*.jpg") == listed(root, "*.jpg") == ["a.jpg"]


def test_links_that_lead_round_end(root: Path) -> None:
    """A folder is read once."""
    (root / "one" / "up").symlink_to(root)
    (root / "linked").symlink_to(root.parent / "elsewhere")
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "h.jpg").touch()
    found = listed(root, "**/*.jpg")
    assert found == ["a.jpg", "linked/h.jpg", "one/a.jpg", "one/two/c.jpg"]


def test_a_folder_that_there_is_not_is_named(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(UsageError, match=r"there is no folder .*absent"):
        listed(tmp_path / "absent", "*")
