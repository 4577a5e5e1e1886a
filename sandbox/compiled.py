"""Keeps what compilers produce: programs in memory, by their text's hash; precompiled headers in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

from qwq_rl.sandbox import languages
from qwq_rl.sandbox.languages import LANGUAGES

_MAX_BYTES = 1 << 27


class BinaryCache:
    """Compiled programs in memory. When they exceed 128 MiB, the least recently used are dropped."""

    def __init__(self) -> None:
        self._programs: OrderedDict[str, bytes] = OrderedDict()
        self._total_bytes = 0
        self._tried_headers: set[Path] = set()

    def try_header(self, path: Path) -> bool:
        """True the first time it is called for a path: making a precompiled header is tried only once."""
        untried = path not in self._tried_headers
        self._tried_headers.add(path)
        return untried

    def get(self, language: str, text: bytes) -> bytes | None:
        """The program that was compiled from this text before; None if there is none."""
        key = _key(language, text)
        if key in self._programs:
            self._programs.move_to_end(key)
        return self._programs.get(key)

    def put(self, language: str, text: bytes, program: bytes) -> None:
        """Keep a program."""
        key = _key(language, text)
        self._total_bytes += len(program) - len(self._programs.get(key, b""))
        self._programs[key] = program
        while self._total_bytes > _MAX_BYTES:
            self._total_bytes -= len(self._programs.popitem(last=False)[1])


def header_folder() -> str:
    """The folder of precompiled headers in the user's cache. It is created; an empty string if that fails."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(os.path.abspath(cache), "qwq_rl", "sandbox")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return ""
    return folder


def header(name: str) -> Path | None:
    """The path of a language's precompiled header, whether it exists yet or not.

    None if the language has none or there is no cache folder. The path contains a hash of the compiler's version and
    arguments, since a precompiled header only works with the compiler and arguments that made it.
    """
    language, folder = LANGUAGES[name], header_folder()
    if not language.headers or not folder:
        return None
    compiler = f"{languages.runtime(name)} {language.compile}".encode()
    return Path(folder, hashlib.sha256(compiler).hexdigest()[:16], language.headers + ".gch")


def keep_header(path: Path, content: bytes) -> None:
    """Store a precompiled header. If that fails, programs compile without it."""
    with contextlib.suppress(OSError):
        # a compiler in another process may read this path now: write elsewhere, then replace in one step
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp allows its owner only, and compilers may run under another user id
        os.replace(temporary, path)


def _key(language: str, text: bytes) -> str:
    return f"{language} {hashlib.sha256(text).hexdigest()}"
