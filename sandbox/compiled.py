"""What compilers made, kept: programs in memory by the hash of their text, a precompiled header in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

from qwq_rl.sandbox import languages
from qwq_rl.sandbox.languages import LANGUAGES

_MOST_BYTES = 1 << 27


class BinaryCache:
    """Compiled programs, the least used of which go when there are too many."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._tried: set[Path] = set()

    def try_header(self, path: Path) -> bool:
        """Whether a precompiled header is to be made now: it is tried once."""
        untried = path not in self._tried
        self._tried.add(path)
        return untried

    def get(self, language: str, text: bytes) -> bytes | None:
        """The program made of a text before; None if there is none."""
        key = _key(language, text)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, language: str, text: bytes, program: bytes) -> None:
        """Keep a program."""
        key = _key(language, text)
        self._bytes += len(program) - len(self._kept.get(key, b""))
        self._kept[key] = program
        while self._bytes > _MOST_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def header_folder() -> str:
    """Where precompiled headers are: in the user's cache. Made if it can be, else the empty string."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(os.path.abspath(home), "qwq_rl", "sandbox")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return ""
    return folder


def header(name: str) -> Path | None:
    """The file of a language's precompiled header, there or not; None where it has none or there is no cache.

    Its folder is named after the compiler's version and arguments: it is of no use to any other.
    """
    language, folder = LANGUAGES[name], header_folder()
    if not language.headers or not folder:
        return None
    told = f"{languages.runtime(name)} {language.compile}".encode()
    return Path(folder, hashlib.sha256(told).hexdigest()[:16], language.headers + ".gch")


def keep_header(path: Path, content: bytes) -> None:
    """Put a precompiled header in its place, all at once; where that fails, programs compile without it."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(made, 0o644)
        os.replace(made, path)


def _key(language: str, text: bytes) -> str:
    return f"{language} {hashlib.sha256(text).hexdigest()}"
