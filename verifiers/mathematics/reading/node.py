"""The tree into which an answer is parsed.

The same small immutable node stands for expressions, lists, sets, relations and words.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple


class Node(NamedTuple):
    """One node of the tree; the nodes of two answers are equal if they are written alike, up to formatting.

    `args` are the parts; for some kinds this list names them in brackets. After each kind follows what `value` holds:
    num, dec: a Fraction, written without (num) or with (dec) a decimal point; sym: a name; const: pi, e, i or inf;
    add, mul, div, neg, pow, root (radicand, index), fact, abs, percent, degree: nothing; call: the name of a function;
    pm: "+" or "-", the sign that comes first, of one or two parts; base: the pair of its digits and its base;
    list: how its items were joined; set, cases: nothing; tuple: its two brackets; matrix: the pair of rows and columns;
    rel: its operators; in: nothing; such (element, conditions): how the conditions were joined, or `remark`;
    union, cap, minus, ratio, mod (number, modulus): nothing; quantity: its unit; named: the name before `=`;
    opaque: a command that is not computed.
    """

    kind: str
    args: tuple[Node, ...] = ()
    value: Any = None


def number(value: int | Fraction) -> Node:
    """An exact number."""
    return Node("num", (), Fraction(value))


def symbol(name: str) -> Node:
    """A variable."""
    return Node("sym", (), name)


INFINITY = Node("const", (), "inf")
MINUS_INFINITY = Node("neg", (INFINITY,))
REALS = Node("tuple", (MINUS_INFINITY, INFINITY), "()")
EMPTY = Node("set")
ZERO, ONE, TWO = number(0), number(1), number(2)


def every(node: Node) -> Iterator[Node]:
    """The node and all nodes below it, in no set order."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(current.args)


def symbols(node: Node) -> frozenset[str]:
    """The variables in `node`."""
    if not node.args:
        return frozenset((node.value,)) if node.kind == "sym" else frozenset()
    return frozenset(part.value for part in every(node) if part.kind == "sym")


def contains(node: Node, *kinds: str) -> bool:
    """Whether a node of one of the `kinds` is in it."""
    return node.kind in kinds or (bool(node.args) and any(part.kind in kinds for part in every(node)))
