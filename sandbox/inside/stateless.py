"""Which programs keep nothing from one call of a function to the next, so that several calls may share a process.

Read in the jail, off the text alone. Nothing but speed hangs on it: whoever is mistaken for such a program could only
pass something to its own later calls. So it names what is surely harmless, functions over plain data, and no more.
"""

from __future__ import annotations

import ast
import builtins

_STATEMENTS = (
    ast.Module, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.Assert, ast.Expr,
    ast.Pass, ast.Break, ast.Continue, ast.Nonlocal,
)  # fmt: skip
"""No class, import, global, del, with, try (of what it catches, some depends on the memory that is left)."""
_EXPRESSIONS = (
    ast.BoolOp, ast.NamedExpr, ast.BinOp, ast.UnaryOp, ast.Lambda, ast.IfExp, ast.Dict, ast.Set, ast.ListComp,
    ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Compare, ast.Call, ast.FormattedValue, ast.JoinedStr, ast.Constant,
    ast.Subscript, ast.Starred, ast.List, ast.Tuple, ast.Slice, ast.comprehension, ast.arguments, ast.arg, ast.keyword,
)  # fmt: skip
_PARTS = (ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop)
_HARMLESS = frozenset({*_STATEMENTS, *_EXPRESSIONS, *(kind for part in _PARTS for kind in part.__subclasses__())})
_BUILTINS = frozenset(
    """abs all any bin bool chr dict divmod enumerate filter float frozenset hex int isinstance iter len list map max
    min next oct ord pow range reversed round set slice sorted str sum tuple zip ValueError""".split()
)
_METHODS = frozenset(
    """add append bit_count bit_length capitalize casefold clear copy count difference difference_update discard
    endswith extend find fromkeys get index insert intersection intersection_update isalnum isalpha isdecimal isdigit
    isdisjoint isidentifier islower isnumeric isspace issubset issuperset istitle isupper items join keys ljust lower
    lstrip partition pop popitem remove removeprefix removesuffix replace reverse rfind rindex rjust rpartition rsplit
    rstrip setdefault sort split splitlines startswith strip swapcase symmetric_difference title union update upper
    values zfill""".split()
)


def stateless(text: str) -> bool:
    """Whether calls of the functions that this program defines come out as in a process of their own."""
    try:
        tree = ast.parse(text, "main.py")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(map(_defines, tree.body)) and all(map(_harmless, ast.walk(tree)))


def _defines(statement: ast.stmt) -> bool:
    """Whether it binds names to functions or to values that cannot change, as a module may."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Name) for target in statement.targets) and _fixed(statement.value)
    return isinstance(statement, ast.FunctionDef) or (isinstance(statement, ast.Expr) and _fixed(statement.value))


def _fixed(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Tuple):
        return all(map(_fixed, value.elts))
    if isinstance(value, ast.BinOp):
        return _fixed(value.left) and _fixed(value.right)
    if isinstance(value, ast.UnaryOp):
        return _fixed(value.operand)
    return value is None or isinstance(value, ast.Constant)


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _BUILTINS or not (node.id.startswith("__") or hasattr(builtins, node.id))
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS and isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.FunctionDef):
        return not node.decorator_list and all(map(_fixed, (*node.args.defaults, *node.args.kw_defaults)))
    return type(node) in _HARMLESS
