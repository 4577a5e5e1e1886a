"""Finds the programs that keep nothing from one function call to the next, so that calls may share a process.

It reads the program's text only, inside the jail. Only speed depends on it: a program that is accepted by mistake could
only pass something to its own later calls. So it accepts only what is surely harmless: functions over plain data.
"""

from __future__ import annotations

import ast
import builtins

_STATEMENTS = (
    ast.Module, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.Assert, ast.Expr,
    ast.Pass, ast.Break, ast.Continue, ast.Nonlocal,
)  # fmt: skip
"""Without class, import, global, del and with. Without try, too: some errors it catches depend on the memory left."""
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
    """Whether calls of this program's functions give the same results in a shared process as in separate ones."""
    try:
        tree = ast.parse(text, "main.py")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(map(_defines, tree.body)) and all(map(_harmless, ast.walk(tree)))


def _defines(statement: ast.stmt) -> bool:
    """Whether a top-level statement only binds names to functions or to values that cannot change."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Name) for target in statement.targets) and _constant(statement.value)
    return isinstance(statement, ast.FunctionDef) or (isinstance(statement, ast.Expr) and _constant(statement.value))


def _constant(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Tuple):
        return all(map(_constant, value.elts))
    if isinstance(value, ast.BinOp):
        return _constant(value.left) and _constant(value.right)
    if isinstance(value, ast.UnaryOp):
        return _constant(value.operand)
    return value is None or isinstance(value, ast.Constant)


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _BUILTINS or not (node.id.startswith("__") or hasattr(builtins, node.id))
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS and isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.FunctionDef):
        # a default that can change, such as a list, would keep its content between calls
        return not node.decorator_list and all(map(_constant, (*node.args.defaults, *node.args.kw_defaults)))
    return type(node) in _HARMLESS
