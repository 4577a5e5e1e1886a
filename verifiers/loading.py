"""From the name in a recipe to a verifier, or to one message that says what would be right."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from qwq_rl.errors import UserError, did_you_mean
from qwq_rl.verifiers.contract import Problem, Response, Running, Verdict, Verifier
from qwq_rl.verifiers.trl_rewards import adapt
from qwq_rl.verifiers.verdicts import describe

BUILT_IN: Mapping[str, str] = {
    "math": "qwq_rl.verifiers.mathematics.verifier:math",
    "code": "qwq_rl.verifiers.builtin.code_tests:code",
    "json_schema": "qwq_rl.verifiers.builtin.json_schema:json_schema",
    "tool_call": "qwq_rl.verifiers.builtin.tool_calls:tool_call",
    "constraints": "qwq_rl.verifiers.builtin.constraints:constraints",
    "exact": "qwq_rl.verifiers.builtin.matches:exact",
    "set_match": "qwq_rl.verifiers.builtin.matches:set_match",
    "list_match": "qwq_rl.verifiers.builtin.matches:list_match",
    "choice": "qwq_rl.verifiers.builtin.choice:choice",
    "think_format": "qwq_rl.verifiers.builtin.format_rules:think_format",
    "language_consistency": "qwq_rl.verifiers.builtin.language:language_consistency",
    "repetition": "qwq_rl.verifiers.builtin.repetition:repetition",
    "overlong": "qwq_rl.verifiers.builtin.format_rules:overlong",
}
"""Name -> `module:factory`; a factory takes the recipe's parameters as keywords and returns the verifier."""

GROUP = "qwq_rl.verifiers"
EXPECTED = "a verifier takes (problem, response); a TRL reward function takes (completions, **columns)"
_INLINE = Running("inline")


@dataclass(frozen=True, eq=False)
class LoadedVerifier:
    """A verifier and what it takes to load it again elsewhere. Called itself, it judges here and now, unshielded."""

    verifier: Verifier
    spec: str
    params: Mapping[str, Any]
    folder: str
    """The working directory, which paths in `spec` and `params` count from."""
    running: Running

    def __call__(
        self, problem: Problem, response: Response
    ) -> Verdict | float | bool | Awaitable[Verdict | float | bool | None] | None:
        """As the verifier says."""
        return self.verifier(problem, response)

    @property
    def key(self) -> str:
        """Equal for what loads the same verifier."""
        return json.dumps([self.spec, dict(self.params), self.folder], sort_keys=True, default=repr)


def load(spec: str, params: Mapping[str, Any] | None = None) -> LoadedVerifier:
    """Resolve `spec` to a verifier; `qwq_rl.verifiers.runner.judge.judge` runs it as it declares.

    `spec` is a built-in name, an entry point of the group `qwq_rl.verifiers`, `package.module:name` or
    `path/to/file.py:name`. A function of (problem, response) is used as it is; anything else is called with
    `params` as keywords and returns the verifier. Raises UserError naming what is wrong and what would be right.
    """
    params = params or {}
    found = _find(spec)
    made = _made(spec, found, params) if _makes_verifier(spec, found, params) else found
    running = declared(made) or declared(found) or (_INLINE if spec in BUILT_IN else Running())
    verifier: Verifier = adapt(made) if _shape(made) == "trl" else made
    return LoadedVerifier(verifier, spec, params, os.getcwd(), running)


def declared(verifier: Any) -> Running | None:
    """What `run_as` declared of a verifier or of what builds it; None where nothing was."""
    running = getattr(verifier, "running", None)
    return running if isinstance(running, Running) else None


def resolvable(spec: str, params: Mapping[str, Any] | None = None) -> str | None:
    """Say what is wrong with `spec` and the names of its parameters, or None; builds nothing."""
    try:
        _makes_verifier(spec, _find(spec), params or {})
    except UserError as error:
        return str(error)
    return None


def _made(spec: str, found: Any, params: Mapping[str, Any]) -> Any:
    try:
        made = found(**params)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        why = str(error) if spec in BUILT_IN and isinstance(error, ValueError) else describe(error)
        raise UserError(f"verifier `{spec}` refuses its parameters {dict(params)}: {why}") from error
    if _shape(made) == "other":
        raise UserError(f"verifier `{spec}` returned {made!r}, which is no verifier: {EXPECTED}")
    return made


def _find(spec: str) -> Any:
    target = BUILT_IN.get(spec, spec)
    if ":" in target or target.endswith(".py"):
        try:
            return find_callable(target)
        except LookupError as error:
            raise UserError(f"verifier `{spec}`: {error}") from error
    for point in entry_points(group=GROUP, name=spec):
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            raise UserError(f"verifier `{spec}` ({point.value}) cannot be imported: {describe(error)}") from error
    known = [*BUILT_IN, *(point.name for point in entry_points(group=GROUP))]
    raise UserError(
        f"unknown verifier `{spec}`{did_you_mean(spec, known)} (known: {', '.join(known)}; "
        "your own is `package.module:name` or `path/to/file.py:name`)"
    )


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
        _refuse_swapped(spec, found)
        return False
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError) as error:
        raise UserError(f"verifier `{spec}` is {found!r}, whose parameters are unknown: {EXPECTED}") from error
    try:
        signature.bind(**params)
    except TypeError as error:
        raise UserError(_misfit(spec, found, signature, params, str(error))) from None
    return True


def _refuse_swapped(spec: str, found: Any) -> None:
    with contextlib.suppress(TypeError, ValueError):  # some C functions tell no signature
        names = list(inspect.signature(found).parameters)
        if names[:1] in (["response"], ["completion"]):
            raise UserError(f"verifier `{spec}` takes ({', '.join(names)}): {EXPECTED}")


def _misfit(spec: str, found: Any, signature: inspect.Signature, params: Mapping[str, Any], error: str) -> str:
    if _shape(found) != "other":
        return f"verifier `{spec}` is used as it is and takes no parameters; it was given {', '.join(params)}"
    if spec not in BUILT_IN and not params:
        return f"verifier `{spec}` takes {signature}: {EXPECTED}, or give its parameters ({error})"
    known = list(signature.parameters)
    unknown = [f"`{name}`{did_you_mean(name, known)}" for name in params if name not in known]
    wrong = f"has no parameter {', '.join(unknown)}" if unknown else error
    return f"verifier `{spec}` {wrong} (parameters: {', '.join(known) or 'none'})"


def find_callable(spec: str) -> Any:
    """Return the function, class or other callable that `spec` names; a module is imported once a process.

    Raises LookupError with one line: the file or name that does not exist and the nearest one that does, the error of
    an import, or that the object cannot be called.
    """
    place, mark, name = spec.rpartition(":")
    if not (mark and place and name):
        raise LookupError(f"`{spec}` names no function: write `package.module:name` or `path/to/file.py:name`")
    module = _file_module(Path(place).expanduser()) if place.endswith(".py") else _package_module(place)
    found = getattr(module, name, None)
    if callable(found):
        return found
    if found is not None:
        raise LookupError(f"`{name}` is {found!r}, not a function")
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise LookupError(f"{getattr(module, '__file__', None) or place} has no `{name}`{did_you_mean(name, functions)}")


def _package_module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:  # a console script lacks the folder that `python -m` adds
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script calls sys.exit
        raise LookupError(f"module `{name}` cannot be imported: {describe(error)}") from error


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise LookupError(f"there is no file {path} (looked in {Path.cwd()})")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # two files may have one name
    name = f"qwq_rl_user_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    source = importlib.util.spec_from_file_location(name, path)
    assert source is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(source)
    sys.modules[name] = module  # dataclasses of the file look themselves up there
    try:
        source.loader.exec_module(module)  # type: ignore[union-attr]
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise LookupError(f"{path} cannot be imported: {describe(error)}") from error
    return module
