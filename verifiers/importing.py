"""From `package.module:name` or `path/to/file.py:name` to the object of that name."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from qwq_rl.verifiers.verdicts import describe


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
    raise LookupError(f"{getattr(module, '__file__', None) or place} has no `{name}`{nearest(name, functions)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known name closest to `name`, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


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
