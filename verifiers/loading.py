"""Turns the name of a verifier in a recipe into a verifier, or into one message that says what would be right."""

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
"""Name -> `module:factory`. A factory takes the recipe's parameters as keywords and returns the verifier."""

GROUP = "qwq_rl.verifiers"
"""The entry point group in which an installed package offers verifiers."""
EXPECTED = "a verifier takes (problem, response); a TRL reward function takes (completions, **columns)"
_INLINE = Running("inline")


@dataclass(frozen=True, eq=False)
class LoadedVerifier:
    """A verifier and what another process needs to load it again.

    If it is called directly, it judges in the caller's thread, without a deadline or other protection.
    """

    verifier: Verifier
    spec: str
    params: Mapping[str, Any]
    folder: str
    """The working directory. Relative paths in `spec` and `params` start here."""
    running: Running

    def __call__(
        self, problem: Problem, response: Response
    ) -> Verdict | float | bool | Awaitable[Verdict | float | bool | None] | None:
        """Call the verifier and return what it returns."""
        return self.verifier(problem, response)

    @property
    def key(self) -> str:
        """A text that is equal for two objects that load the same verifier."""
        return json.dumps([self.spec, dict(self.params), self.folder], sort_keys=True, default=repr)


def load(spec: str, params: Mapping[str, Any] | None = None) -> LoadedVerifier:
    """Resolve `spec` to a verifier; `qwq_rl.verifiers.runner.judge.judge` then runs it as it declares.

    `spec` is a built-in name, an entry point of the group `qwq_rl.verifiers`, `package.module:name` or
    `path/to/file.py:name`. A function of (problem, response) is used as it is. Anything else is called with `params` as
    keywords and must return the verifier. Raises UserError, which names what is wrong and what would be right.
    """
    params = params or {}
    target = _find_object(spec)
    built = _build(spec, target, params) if _is_factory(spec, target, params) else target
    # Built-in verifiers bound their own work, so they need no worker. Others get one by default.
    running = declared(built) or declared(target) or (_INLINE if spec in BUILT_IN else Running())
    verifier: Verifier = adapt(built) if _shape(built) == "trl" else built
    return LoadedVerifier(verifier, spec, params, os.getcwd(), running)


def declared(verifier: Any) -> Running | None:
    """What `run_as` declared for a verifier or for its factory; None if nothing was declared."""
    running = getattr(verifier, "running", None)
    return running if isinstance(running, Running) else None


def resolvable(spec: str, params: Mapping[str, Any] | None = None) -> str | None:
    """Say what is wrong with `spec` or with the names of its parameters; None if all is right. Builds nothing."""
    try:
        _is_factory(spec, _find_object(spec), params or {})
    except UserError as error:
        return str(error)
    return None


def _build(spec: str, factory: Any, params: Mapping[str, Any]) -> Any:
    try:
        built = factory(**params)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # A ValueError of a built-in is written for the user. Other errors also need the place that raised them.
        cause = str(error) if spec in BUILT_IN and isinstance(error, ValueError) else describe(error)
        raise UserError(f"verifier `{spec}` refuses its parameters {dict(params)}: {cause}") from error
    if _shape(built) == "other":
        raise UserError(f"verifier `{spec}` returned {built!r}, which is no verifier: {EXPECTED}")
    return built


def _find_object(spec: str) -> Any:
    location = BUILT_IN.get(spec, spec)
    if ":" in location or location.endswith(".py"):
        try:
            return find_callable(location)
        except LookupError as error:
            raise UserError(f"verifier `{spec}`: {error}") from error
    for entry_point in entry_points(group=GROUP, name=spec):
        try:
            return entry_point.load()
        except (Exception, SystemExit) as error:
            raise UserError(f"verifier `{spec}` ({entry_point.value}) cannot be imported: {describe(error)}") from error
    known_names = [*BUILT_IN, *(entry_point.name for entry_point in entry_points(group=GROUP))]
    raise UserError(
        f"unknown verifier `{spec}`{did_you_mean(spec, known_names)} (known: {', '.join(known_names)}; "
        "your own is `package.module:name` or `path/to/file.py:name`)"
    )


def _shape(target: Any) -> str:
    """Whether a callable is a `verifier`, a `trl` reward function or `other`.

    The names and the number of its positional parameters decide.
    """
    if inspect.isclass(target) or not callable(target):
        return "other"
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some C functions have no signature
        return "verifier"
    # TRL calls by keyword, so the name of the first parameter identifies its reward functions.
    if parameters and parameters[0].name in ("completions", "prompts"):
        return "trl"
    needed = [param for param in parameters if param.default is param.empty and param.kind is not param.VAR_KEYWORD]
    ordered = [param for param in needed if param.kind in (param.POSITIONAL_ONLY, param.POSITIONAL_OR_KEYWORD)]
    variadic = any(param.kind is param.VAR_POSITIONAL for param in parameters)
    keywords = any(param.kind is param.KEYWORD_ONLY for param in needed)
    return "verifier" if not keywords and (len(ordered) == 2 or (variadic and len(ordered) < 2)) else "other"


def _is_factory(spec: str, target: Any, params: Mapping[str, Any]) -> bool:
    """Whether `target` must be called with `params` to get the verifier; raises UserError if it fits neither way."""
    if not params and _shape(target) != "other":
        _refuse_swapped(spec, target)
        return False
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise UserError(f"verifier `{spec}` is {target!r}, whose parameters are unknown: {EXPECTED}") from error
    try:
        signature.bind(**params)
    except TypeError as error:
        raise UserError(_explain_misfit(spec, target, signature, params, str(error))) from None
    return True


def _refuse_swapped(spec: str, target: Any) -> None:
    """Raise UserError for a function whose first parameter is the response: its parameters are in the wrong order."""
    with contextlib.suppress(TypeError, ValueError):  # some C functions have no signature
        names = list(inspect.signature(target).parameters)
        if names[:1] in (["response"], ["completion"]):
            raise UserError(f"verifier `{spec}` takes ({', '.join(names)}): {EXPECTED}")


def _explain_misfit(spec: str, target: Any, signature: inspect.Signature, params: Mapping[str, Any], error: str) -> str:
    if _shape(target) != "other":
        return f"verifier `{spec}` is used as it is and takes no parameters; it was given {', '.join(params)}"
    if spec not in BUILT_IN and not params:
        return f"verifier `{spec}` takes {signature}: {EXPECTED}, or give its parameters ({error})"
    names = list(signature.parameters)
    unknown = [f"`{name}`{did_you_mean(name, names)}" for name in params if name not in names]
    mistake = f"has no parameter {', '.join(unknown)}" if unknown else error
    return f"verifier `{spec}` {mistake} (parameters: {', '.join(names) or 'none'})"


def find_callable(spec: str) -> Any:
    """Return the function, class or other callable that `spec` names. A module is imported once per process.

    Raises LookupError with one line: which file or name does not exist, and the nearest one that does; or the error of
    an import; or that the object cannot be called.
    """
    location, colon, name = spec.rpartition(":")
    if not (colon and location and name):
        raise LookupError(f"`{spec}` names no function: write `package.module:name` or `path/to/file.py:name`")
    module = _file_module(Path(location).expanduser()) if location.endswith(".py") else _package_module(location)
    target = getattr(module, name, None)
    if callable(target):
        return target
    if target is not None:
        raise LookupError(f"`{name}` is {target!r}, not a function")
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise LookupError(f"{getattr(module, '__file__', None) or location} has no `{name}`{did_you_mean(name, functions)}")


def _package_module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:  # a console script does not add it, `python -m` does
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script may call sys.exit
        raise LookupError(f"module `{name}` cannot be imported: {describe(error)}") from error


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise LookupError(f"there is no file {path} (looked in {Path.cwd()})")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # two files may have the same name
    name = f"qwq_rl_user_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(module_spec)
    # Before the module runs: dataclasses of the file look themselves up there.
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)  # type: ignore[union-attr]
    except (Exception, SystemExit) as error:
        del sys.modules[name]  # so that the next try does not find a half-imported module
        raise LookupError(f"{path} cannot be imported: {describe(error)}") from error
    return module
