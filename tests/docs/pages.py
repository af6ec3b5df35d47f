"""The documentation as data: the fenced blocks of a page, the commands in them, the names and links in its text."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

GUIDES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "benchmarks").glob("README.md"),
]
"""Pages whose commands are run."""

PAGES = [*GUIDES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))]
"""All pages."""


def page_name(page: Path) -> str:
    """`docs/configuration.md`."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int
    """The number of its first line in the page."""

    @property
    def path(self) -> str | None:
        """The file that it is the content of: its first line is `# configs/NAME.yaml` or `# folder/name.py`."""
        found = re.match(r"#\s*([\w./-]+\.(?:py|yaml))\s*$", self.text.split("\n", 1)[0])
        return found[1] if found else None


@dataclass(frozen=True)
class Command:
    """A line after `$ ` in a block, and the lines shown below it."""

    text: str
    line: int
    shown: tuple[str, ...]
    asked: int | None = None
    """What the page shows for `echo $?` after it."""

    @property
    def status(self) -> int:
        """The exit status that the page promises: that of `echo $?`, else 2 after an `error:`, 75 after a Ctrl-C, 0."""
        if self.asked is not None:
            return self.asked
        if any(line.startswith("error:") for line in self.shown):
            return 2
        return 75 if "^C" in self.shown else 0


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").split("\n")
    start, language = 0, None
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("```"):
            continue
        if language is None:
            start, language = number + 1, line.strip().removeprefix("```")
        else:
            found.append(Block(language, "\n".join(lines[start - 1 : number - 1]) + "\n", start))
            language = None
    assert language is None, f"{page}:{start - 1}: a block without an end"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```\s*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(block: Block) -> list[Command]:
    """The commands of a `console` block."""
    found: list[Command] = []
    for number, line in enumerate(block.text.rstrip("\n").split("\n"), start=block.line):
        if line.startswith("$ "):
            found.append(Command(line[2:], number, ()))
        else:
            assert found, f"line {number}: output without a command"
            last = found[-1]
            found[-1] = replace(last, shown=(*last.shown, line))
    for number, after in enumerate(found[1:]):
        if after.text == "echo $?":
            found[number] = replace(found[number], asked=int(after.shown[0]))
    return found


def rows_of_habits(page: Path) -> list[tuple[int, str, str]]:
    """Line, left and right column of the tables that say what is typed elsewhere, and what here."""
    rows: list[tuple[int, str, str]] = []
    is_inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), start=1):
        is_inside = line.startswith("|") and (is_inside or line == "| what you type | here |")
        if is_inside:
            left, _, right = line.strip("| ").rpartition(" | ")
            rows.append((number, left, right))
    return rows


def commands_of_habits(page: Path) -> list[Command]:
    """The commands in the right column of these tables, each once; not of a run that has no name (`RUN`)."""
    found: dict[str, Command] = {}
    for line, _, right in rows_of_habits(page):
        for code in re.findall(r"`((?:[A-Z_]+=\S+ )*flambeau [a-z]+ [^`]+)`", right):
            if "RUN" not in code.split():
                found.setdefault(code, Command(code, line, ()))
    return [*found.values()]


def matcher(shown: str, *, exact: bool) -> re.Pattern[str]:
    """What a shown line says, as a pattern: `...` is anything, the width of gaps does not count.

    Args:
        exact: numbers and times are as shown; otherwise any number and any run's name will do.
    """
    pieces = []
    for word in re.split(r"(\.\.\.|\s+)", shown.strip()):
        if word == "...":
            pieces.append(".*")
        elif word.isspace():
            pieces.append(r"\s+")
        elif exact:
            pieces.append(re.escape(word))
        else:
            run = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}"
            parts = re.split(rf"({run}|\d[\d,]*(?:\.\d+)?)", word)
            for place, part in enumerate(parts):
                number = run if re.fullmatch(run, part) else r"\d[\d,]*(?:\.\d+)?"
                pieces.append(number if place % 2 else re.escape(part))
    return re.compile("".join(pieces))


def missing(shown: tuple[str, ...], output: str, *, exact: bool) -> list[str]:
    """The shown lines that `output` does not have, in their order; empty ones and `^C` are not looked for."""
    lines = [line.strip() for line in output.split("\n")]
    absent, begin = [], 0
    for line in shown:
        if line.strip() in ("", "...", "^C"):
            continue
        pattern = matcher(line, exact=exact)
        found = next((place for place in range(begin, len(lines)) if pattern.fullmatch(lines[place])), None)
        if found is None:
            absent.append(line)
        else:
            begin = found + 1
    return absent


def inline_code(page: Path) -> list[str]:
    """What stands in backticks in the text of a page."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def links(page: Path) -> list[str]:
    """Targets of the links and images in the text of a page."""
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """What `#...` may say of a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
