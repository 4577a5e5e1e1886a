"""Programs in answers: which of the fenced blocks of a Markdown text is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TAGS: dict[str, frozenset[str]] = {
    "python": frozenset({"python", "python3", "py", "py3"}),
    "cpp": frozenset({"cpp", "c++", "cc", "cxx", "cpp17", "c++17", "cpp20", "c++20"}),
    "javascript": frozenset({"javascript", "js", "node", "nodejs", "mjs"}),
    "bash": frozenset({"bash", "sh", "shell"}),
}
"""What a block of a language may be labelled."""
_OPENING = re.compile(r"([ \t]*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
_CLOSING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*")
_TAG = re.compile(r"[\s{.]*([\w+#]*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its label in lower case, and what stands in it."""

    tag: str
    text: str


@dataclass(frozen=True)
class Program:
    """What is to be run."""

    text: str
    language: str


def extract_program(
    answer: str, languages: Sequence[str] = ("python",), *, entry_point: str | None = None, bare: bool = False
) -> Program | None:
    """The program that an answer ends on; None where there is none.

    Of the closed blocks labelled with one of the languages the last that defines `entry_point`, or else the last; where
    no block is labelled so, the same of those without a label, in the first language. Inside the last `<answer>` where
    that has any. With `bare`, a text without any fence is itself a program.
    """
    told = _inside_tag(answer.replace("\r\n", "\n"))
    known = {tag: language for language in languages for tag in TAGS[language]}
    for labels in (known, {"": languages[0]}):
        found = [block for block in blocks(told) if block.tag in labels]
        defining = [block for block in found if entry_point and _defines(block.text, entry_point)]
        if found:
            block = (defining or found)[-1]
            return Program(block.text, labels[block.tag])
    return Program(told, languages[0]) if bare and told.strip() and "```" not in told else None


def blocks(text: str) -> list[Block]:
    """The closed fenced blocks of a Markdown text, as CommonMark reads them; one line after the other."""
    found: list[Block] = []
    fence, indent, tag, held = "", 0, "", list[str]()
    for line in text.split("\n"):
        if not fence:
            if opening := _OPENING.fullmatch(line):
                fence, indent, held = opening[2], len(opening[1]), []
                label = _TAG.match(opening[3])
                tag = label[1].lower() if label else ""
        elif (closing := _CLOSING.fullmatch(line)) and closing[1].startswith(fence):
            found.append(Block(tag, "".join(f"{one}\n" for one in held)))
            fence = ""
        else:
            held.append(line[min(indent, len(line) - len(line.lstrip(" \t"))) :])
    return found


def _inside_tag(text: str) -> str:
    before, closed, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside if closed and opened else text


def _defines(program: str, name: str) -> bool:
    return (
        re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*[:=]", program, re.M)
        is not None
    )
