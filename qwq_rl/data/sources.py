"""Reads the rows of a source (generated, a file or the Hub), and reports every mistake with the number of its line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from qwq_rl.data.mappers import Mapper, resolve_mapper
from qwq_rl.data.row import (
    Kind,
    Row,
    kind_of,
    row_mistakes,
)
from qwq_rl.errors import RowError, did_you_mean

SHOWN = 20
"""How many mistakes of one source a message lists; the others are only counted."""

_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")
Numbered = tuple[int, Any]
"""The number of a line or row, from 1, and its content: the parsed value, or an `UnreadableLine`."""


class UnreadableLine(str):
    """The reason why a line could not be read as a row. It takes the place of the row."""


def load_rows(
    source: str, *, mapper: str | None = None, limit: int | None = None, seed: int = 0, kind: Kind | None = None
) -> list[Row]:
    """Read the rows of a source and check every one of them.

    `source` is `tiny/NAME` (generated, from `seed`), a `.jsonl` or `.parquet` file, or a Hub id,
    `ORG/NAME[:CONFIG[:SPLIT]]` (split `train` by default). `mapper` turns each published row into one of ours
    (`qwq_rl.data.mappers`). `limit` keeps only the first `limit` rows. `kind` is the kind of rows that is needed;
    without it, the columns of the first row decide.

    Raises RowError if the source is missing, unreadable or has mistakes. The message lists up to 20 with their lines.
    """
    mapping = resolve_mapper(mapper) if mapper else None
    name, numbered = read_numbered(source, limit, seed)
    rows, mistakes = _checked(numbered, map_with(mapping, mapper), kind)
    if mistakes:
        raise RowError("\n".join(_listed(name, mistakes)))
    if not rows:
        raise RowError(f"{name}: it has no rows")
    return rows


def _listed(name: str, mistakes: Sequence[tuple[int, str]]) -> list[str]:
    lines = [f"{name}:{number}: {mistake}" for number, mistake in mistakes[:SHOWN]]
    return lines + ([f"... and {len(mistakes) - SHOWN} more in {name}"] if len(mistakes) > SHOWN else [])


def map_with(mapping: Mapper | None, spec: str | None) -> Callable[[Row], Any]:
    """Wrap a mapper: where it raises, the wrapper returns an `UnreadableLine`, which counts as a mistake of that row.

    `spec` is the mapper's name for messages. Without a mapper, rows are returned as they are.
    """

    def apply(row: Row) -> Any:
        if mapping is None:
            return row
        try:
            mapped = mapping(row)
        except Exception as error:  # a mapper of the user may raise anything
            reason = f"column {error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            return UnreadableLine(f"the mapper `{spec}` failed: {reason} (the row has {', '.join(row)})")
        return (
            mapped
            if isinstance(mapped, dict)
            else UnreadableLine(f"the mapper `{spec}` returned {mapped!r}, not a row")
        )

    return apply


def _checked(
    numbered: Iterable[Numbered], apply_mapper: Callable[[Row], Any], kind: Kind | None
) -> tuple[list[Row], list[tuple[int, str]]]:
    """Return the rows, and every mistake with the number of its line."""
    rows: list[Row] = []
    mistakes: list[tuple[int, str]] = []
    line_of_id: dict[str, int] = {}
    for number, value in numbered:
        row = apply_mapper(value) if isinstance(value, dict) else value
        if isinstance(row, UnreadableLine):
            mistakes.append((number, str(row)))
            continue
        # From here on, all rows must be of the kind of the first one.
        kind = kind or kind_of(row)
        mistakes += ((number, mistake) for mistake in row_mistakes(row, kind))
        row_id = row.get("id")
        if isinstance(row_id, str) and row_id and line_of_id.setdefault(row_id, number) != number:
            mistakes.append(
                (number, f"the id {row_id!r} is taken by line {line_of_id[row_id]}; every row needs its own")
            )
        rows.append(row)
    return rows, mistakes


def read_numbered(source: str, limit: int | None, seed: int) -> tuple[str, Iterator[Numbered]]:
    """Return the source's name for messages, and its numbered values; they are read only as they are used."""
    if source.startswith("tiny/"):
        from qwq_rl.data.tiny import sets

        name = source.removeprefix("tiny/")
        if name not in sets.NAMES:
            raise RowError(
                f"{source}: there is no such set{did_you_mean(name, sets.NAMES)} (tiny/ has {', '.join(sets.NAMES)})"
            )
        return source, enumerate(islice(sets.rows(name, seed), limit), start=1)
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet"):
        if not path.is_file():
            raise RowError(f"{source}: there is no such file{_similar(path)}")
        return source, islice(_read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path), limit)
    # A path that exists or looks like a path is never taken for a Hub id.
    hub = _HUB.fullmatch(source)
    if path.exists() or not hub or source.startswith(("./", "../", "~")):
        raise RowError(
            f"{source}: not a source of rows; it must be a .jsonl or .parquet file, tiny/NAME, "
            "or a Hub id ORG/NAME[:CONFIG[:SPLIT]]"
        )
    return source, _read_hub(source, hub["id"], hub["config"], hub["split"] or "train", limit)


def _similar(path: Path) -> str:
    """Return a hint for a missing file: data files of its folder with a similar name, or any."""
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in (".jsonl", ".parquet"))
    close = difflib.get_close_matches(path.name, names, n=3) or names[:5]
    return f"; {path.parent} has {', '.join(close)}" if close else f"; {path.parent} has no .jsonl or .parquet file"


def _read_jsonl(path: Path) -> Iterator[Numbered]:
    with path.open("rb") as file:
        yield from parse_lines(file)


def parse_lines(lines: Iterable[bytes]) -> Iterator[Numbered]:
    """Yield the JSON object of each line that is not empty, or an `UnreadableLine`."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse(line, first=number == 1)


def _parse(line: bytes, first: bool) -> Any:
    try:
        # The first line may begin with a byte order mark.
        text = line.decode("utf-8-sig" if first else "utf-8")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return UnreadableLine(f"not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}")
    except json.JSONDecodeError as error:
        hint = "; one whole JSON object a line is needed" if first and text.strip() in ("[", "{") else ""
        return UnreadableLine(f"not JSON: {error.msg} at column {error.colno}{hint}")
    except RecursionError:
        return UnreadableLine("not a row: it is nested too deep")
    if not isinstance(value, dict):
        return UnreadableLine(f"a JSON {type(value).__name__}, where one JSON object a line is needed")
    return value


def _read_parquet(path: Path) -> Iterator[Numbered]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        batches = (batch.to_pylist() for batch in table.iter_batches())
        yield from enumerate((row for batch in batches for row in batch), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise RowError(f"{path}: not a readable Parquet file: {error}") from error


def _read_hub(source: str, name: str, config: str | None, split: str, limit: int | None) -> Iterator[Numbered]:
    import datasets

    try:
        # With a limit the rows are streamed, so that the whole data set need not be downloaded.
        rows = datasets.load_dataset(name, config, split=split, streaming=limit is not None)
        yield from enumerate(islice(rows, limit), start=1)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip() or type(error).__name__
        raise RowError(f"{source}: the Hub data set cannot be loaded: {reason}") from error
