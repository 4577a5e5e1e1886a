"""From the name in a recipe to a verifier, or to one message that says what would be right."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from qwq_rl.errors import UserError
from qwq_rl.verifiers.contract import Verifier
from qwq_rl.verifiers.outcomes import describe
from qwq_rl.verifiers.trl_rewards import adapt

BUILT_IN: Mapping[str, str] = {
    "math": "qwq_rl.verifiers.math_answer:math",
    "code": "qwq_rl.verifiers.code_tests:code",
    "json_schema": "qwq_rl.verifiers.json_schema:json_schema",
    "tool_call": "qwq_rl.verifiers.tool_calls:tool_call",
    "constraints": "qwq_rl.verifiers.constraints:constraints",
    "exact": "qwq_rl.verifiers.text_rules:exact",
    "think_format": "qwq_rl.verifiers.text_rules:think_format",
}
"""Name -> `module:factory`; a factory takes the recipe's parameters as keywords and returns the verifier."""

GROUP = "qwq_rl.verifiers"
EXPECTED = "a verifier takes (problem, response); a TRL reward function takes (completions, **columns)"


def load(spec: str, params: Mapping[str, Any] | None = None) -> Verifier:
    """Resolve `spec` to a verifier.

    `spec` is a built-in name, an entry point of the group `qwq_rl.verifiers`, `package.module:name` or
    `path/to/file.py:name`. A function of (problem, response) is used as it is; anything else is called with
    `params` as keywords and returns the verifier. Raises UserError naming what is wrong and what would be right.
    """
    params = params or {}
    found = _find(spec)
    if not _makes_verifier(spec, found, params):
        return _verifier(spec, found)
    try:
        made = found(**params)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"verifier `{spec}` refuses its parameters {dict(params)}: {describe(error)}") from error
    if _shape(made) == "other":
        raise UserError(f"verifier `{spec}` returned {made!r}, which is no verifier: {EXPECTED}")
    return _verifier(spec, made)


def resolvable(spec: str, params: Mapping[str, Any] | None = None) -> str | None:
    """Say what is wrong with `spec` and the names of its parameters, or None; builds nothing."""
    try:
        _makes_verifier(spec, _find(spec), params or {})
    except UserError as error:
        return str(error)
    return None


def _find(spec: str) -> Any:
    target = BUILT_IN.get(spec, spec)
    if ":" in target:
        module_name, _, name = target.rpartition(":")
        return _attribute(spec, _module(spec, module_name), name)
    for point in entry_points(group=GROUP, name=spec):
        try:
            return point.load()
        except Exception as error:
            raise UserError(f"verifier `{spec}` ({point.value}) cannot be imported: {describe(error)}") from error
    known = [*BUILT_IN, *(point.name for point in entry_points(group=GROUP))]
    raise UserError(
        f"unknown verifier `{spec}`{_nearest(spec, known)} (known: {', '.join(known)}; "
        "your own is `package.module:name` or `path/to/file.py:name`)"
    )


def _module(spec: str, name: str) -> ModuleType:
    if name.endswith(".py"):
        return _file_module(spec, Path(name))
    if str(Path.cwd()) not in sys.path:  # a console script lacks the folder that `python -m` adds
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(f"verifier `{spec}`: module `{name}` cannot be imported: {describe(error)}") from error


def _file_module(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"verifier `{spec}`: there is no file {path} (looked in {Path.cwd()})")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"qwq_rl_user_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    source = importlib.util.spec_from_file_location(name, path)
    assert source is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(source)
    sys.modules[name] = module
    try:
        source.loader.exec_module(module)  # type: ignore[union-attr]
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"verifier `{spec}`: {path} cannot be imported: {describe(error)}") from error
    return module


def _attribute(spec: str, module: ModuleType, name: str) -> Any:
    found: Any = getattr(module, name, None)
    if callable(found):
        return found
    if found is not None:
        raise UserError(f"verifier `{spec}`: `{name}` is {found!r}, not a function")
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    where = getattr(module, "__file__", None) or module.__name__
    raise UserError(f"verifier `{spec}`: {where} has no `{name}`{_nearest(name, functions)}")


def _shape(found: Any) -> str:
    """`verifier`, `trl` or `other`, by the parameters that must be given in order."""
    if inspect.isclass(found) or not callable(found):
        return "other"
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # some C functions tell no signature
        return "verifier"
    if parameters and parameters[0].name in ("completions", "prompts"):
        return "trl"
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    ordered = [p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    keywords = any(p.kind is p.KEYWORD_ONLY for p in needed)
    return "verifier" if not keywords and (len(ordered) == 2 or (variadic and len(ordered) < 2)) else "other"


def _makes_verifier(spec: str, found: Any, params: Mapping[str, Any]) -> bool:
    """Whether `found` must be called with `params` to get the verifier; raises where it fits neither way."""
    if not params and _shape(found) != "other":
        return False
    signature = inspect.signature(found)
    try:
        signature.bind(**params)
    except TypeError as error:
        raise UserError(_misfit(spec, found, signature, params, str(error))) from None
    return True


def _misfit(spec: str, found: Any, signature: inspect.Signature, params: Mapping[str, Any], error: str) -> str:
    if _shape(found) != "other":
        return f"verifier `{spec}` is used as it is and takes no parameters; it was given {', '.join(params)}"
    if spec not in BUILT_IN and not params:
        return f"verifier `{spec}` takes {signature}: {EXPECTED}, or give its parameters ({error})"
    known = list(signature.parameters)
    unknown = [f"`{name}`{_nearest(name, known)}" for name in params if name not in known]
    wrong = f"has no parameter {', '.join(unknown)}" if unknown else error
    return f"verifier `{spec}` {wrong} (parameters: {', '.join(known) or 'none'})"


def _verifier(spec: str, found: Any) -> Verifier:
    return adapt(found) if _shape(found) == "trl" else found  # type: ignore[no-any-return]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
