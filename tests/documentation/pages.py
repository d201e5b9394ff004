"""The pages of documentation as a test reads them: fenced blocks of code, commands, links."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))

SHELL, PYTHON = "sh", "python"
# What blocks may hold: run, executed, parsed, or shown only.
LANGUAGES = (SHELL, PYTHON, "json", "text")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")
# A command in the middle of a sentence, or an option: a verb follows `hwpq`, so that the mere name is none.
_MENTION = re.compile(r"^(hwpq [a-z]+|make [a-z]+$|python -m |pip install |--[a-z])")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes
    ----------
    page
        File that it stands in.
    line
        Number of its first line of code.
    language
        Word behind the fence.
    text
        What it holds, newline at the end.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """Page and line, as an editor takes them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, text[: match.start(2)].count("\n") + 1, match[1], match[2]) for match in _FENCE.finditer(text)]


def commands(block: Block) -> list[str]:
    """Commands of a shell block, comments and all; lines that end in a backslash go on in the next one."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def mentions(page: Path) -> list[str]:
    """Commands and options between single backticks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [span for span in _CODE_SPAN.findall(text) if _MENTION.match(span)]


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [match[1] or match[2] for match in _LINK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """Names by which headings of a page are linked to."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def words(command: str) -> list[str]:
    """Words of a command, as the shell splits them, without comments."""
    return shlex.split(command, comments=True)
