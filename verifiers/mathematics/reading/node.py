"""The tree that an answer is read into: one small immutable node for expressions, lists, sets, relations and words."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple


class Node(NamedTuple):
    """One node; equal nodes are written alike up to looks.

    `kind`, with what `value` holds (`args` are the parts):
    num, dec: a Fraction, written without or with a decimal point; sym: a name; const: pi, e, i or inf;
    add, mul, div, neg, pow, root (radicand, index), fact, abs; call: a function's name; percent, degree;
    pm: "+" or "-", the sign that comes first, of one or two parts; base: (digits, base);
    list: how its items were joined; set; tuple: its two brackets; matrix: (rows, columns);
    rel: its operators; in; such (element, conditions); union, cap, minus; ratio; mod (value, modulus);
    quantity: its unit; named: the name that stood before `=`; words: a text; opaque: a command that is not worked out.
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
    """The node and all below it."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(top.args)


def symbols(node: Node) -> frozenset[str]:
    """The variables in `node`."""
    if not node.args:
        return frozenset((node.value,)) if node.kind == "sym" else frozenset()
    return frozenset(one.value for one in every(node) if one.kind == "sym")


def contains(node: Node, *kinds: str) -> bool:
    """Whether a node of one of the `kinds` is in it."""
    return node.kind in kinds or (bool(node.args) and any(one.kind in kinds for one in every(node)))
