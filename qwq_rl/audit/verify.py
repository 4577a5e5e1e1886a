"""Judges responses with a verifier, or audits it: `qwq-rl verify VERIFIER rows.jsonl [--out FILE] [--audit]`.

Writes one verdict per row, in input order, as soon as it is known, so that an interrupt keeps what is written.
`--audit` instead checks whether verifier and rows can be trusted (`qwq_rl.audit.audit`).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from qwq_rl.audit.arguments import Chosen, check_out, choose, parser
from qwq_rl.audit.audit import Alone, audit
from qwq_rl.audit.findings import told
from qwq_rl.audit.responses import LineMistake, ResponseCheck, read_asked
from qwq_rl.data.row import Row, checks_of
from qwq_rl.data.sources import SHOWN
from qwq_rl.errors import RowError, UserError
from qwq_rl.run_folder.files import write_json
from qwq_rl.verifiers import Verdict, Verifier, load
from qwq_rl.verifiers.runner.judge import judge

BATCH = 64
"""Rows judged in one call. At most so many verdicts are lost in a crash; enough for verifiers that batch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `qwq-rl verify`. Returns 0, or 1 if the audit failed or too many rows could not be judged.

    Raises UserError (exit status 2) for a wrong command or wrong rows. Returns 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    chosen = choose(options.verifier, options.recipe, options.param)
    check_out(options.out, options.rows)
    if options.audit and options.jobs > 1:
        raise UserError("--jobs does nothing with --audit: leave it out")
    if options.audit:
        verifier = load(chosen.spec, chosen.params)
        return audit_rows(
            chosen.name, verifier, _rows(options, chosen), options.rows, options.thinking_opened, options.out
        )
    load(chosen.spec, chosen.params)  # reports a mistake in it before any row is read
    rows = _rows(options, chosen)
    return _verify(chosen, rows, options.rows, options.out, options.jobs, options.fault_share)


def _rows(options: argparse.Namespace, chosen: Chosen) -> Iterator[ResponseCheck | LineMistake]:
    return read_asked(
        options.rows,
        chosen.name,
        check=options.check,
        role=options.role,
        opened=options.thinking_opened,
        responses=not options.audit,
        limit=options.limit,
        mapper=options.mapper,
    )


def _verify(
    chosen: Chosen,
    rows: Iterable[ResponseCheck | LineMistake],
    source: str,
    out: Path | None,
    jobs: int,
    fault_share: float,
) -> int:
    counts, mistakes, interrupted = VerdictCounts(), list[LineMistake](), False
    with _writer(out) as write, counting("verifying", _count(source), show=out is not None) as on_rows:
        try:
            for row, verdict in _verdicts(chosen, _sound(rows, mistakes), jobs):
                write.write(verdict_line(row.id, verdict) + "\n")
                counts.add(verdict)
                if counts.rows % BATCH == 0:
                    write.flush()
                    on_rows(counts.rows)
        except KeyboardInterrupt:
            interrupted = True
    if counts.rows or interrupted:
        print(counts.text(chosen.name), file=sys.stderr)
    if interrupted:
        print(f"stopped: the verdicts of the first {counts.rows} rows are written", file=sys.stderr)
        return 130
    # Bad rows are reported at the end: the verdicts of all others are written by now.
    if mistakes:
        raise RowError(mistakes_text(source, mistakes, f"the other {counts.rows} were judged"))
    if not counts.rows:
        raise RowError(f"{source}: it has no rows")
    if counts.fault_share > fault_share:
        print(f"qwq-rl: {counts.fault_share:.1%} could not be judged, more than --fault-share allows", file=sys.stderr)
        return 1
    return 0


def verdict_line(name: str, verdict: Verdict) -> str:
    """Format a verdict as one line of the output (docs/contracts.md, "A verdict line")."""
    metrics = {key: value for key, value in verdict.metrics.items() if math.isfinite(value)}
    record = {
        "id": name,
        "score": verdict.score,
        "status": verdict.status,
        "reason": verdict.reason,
        "answer": verdict.answer,
        "metrics": metrics,
        "seconds": round(verdict.seconds, 6),
    }
    return json.dumps(record, ensure_ascii=False, default=str)


def mistakes_text(source: str, mistakes: Sequence[LineMistake], others: str) -> str:
    """One message with the mistakes of a source; `others` says what happened to its other rows."""
    lines = [f"{source}:{mistake.line}: {mistake.what}" for mistake in mistakes[:SHOWN]]
    lines += [f"... and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
    return "\n".join([*lines, f"{len(mistakes)} rows are malformed; {others}"])


@contextmanager
def _writer(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    # JSON may hold a lone surrogate, which UTF-8 cannot encode: replace it instead of losing the verdict.
    with out.open("w", encoding="utf-8", errors="replace") as file:
        yield file


def _count(source: str) -> int | None:
    """How many lines a plain file has, for the progress bar; None if no bar is shown or the number is unknown."""
    if not source.endswith(".jsonl") or not sys.stderr.isatty() or not Path(source).is_file():
        return None
    with Path(source).open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _sound(rows: Iterable[ResponseCheck | LineMistake], mistakes: list[LineMistake]) -> Iterator[ResponseCheck]:
    """Yield the rows that can be judged; collect the others in `mistakes`."""
    for row in rows:
        if isinstance(row, LineMistake):
            mistakes.append(row)
        else:
            yield row


def _verdicts(chosen: Chosen, rows: Iterator[ResponseCheck], jobs: int) -> Iterator[tuple[ResponseCheck, Verdict]]:
    """Yield each row with its verdict, in input order; with `jobs` > 1, worker processes judge."""
    batches = iter(lambda: list(islice(rows, BATCH)), [])
    if jobs == 1:
        verifier = load(chosen.spec, chosen.params)
        for batch in batches:
            yield from zip(batch, judge_batch(verifier, batch), strict=True)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (chosen.spec, dict(chosen.params), os.getcwd())) as pool:
        waiting: deque[tuple[list[ResponseCheck], Future[list[Verdict]]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_judge_in_worker, batch)))
                # Enough batches to keep every worker busy, without reading the whole file into memory.
                if len(waiting) > 2 * jobs:
                    yield from _finished(*waiting.popleft())
            while waiting:
                yield from _finished(*waiting.popleft())
        except BrokenProcessPool:
            raise UserError(
                f"a process that judged with `{chosen.spec}` died: run it with --jobs 1, where the verifier's own "
                "isolation decides what a crash costs"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(batch: list[ResponseCheck], future: Future[list[Verdict]]) -> Iterator[tuple[ResponseCheck, Verdict]]:
    yield from zip(batch, future.result(), strict=True)


def judge_batch(verifier: Verifier, batch: Sequence[ResponseCheck]) -> list[Verdict]:
    """Return one verdict per row, in order. Each row is judged in the role of its check."""
    verdicts: dict[int, Verdict] = {}
    for role in dict.fromkeys(row.check.role for row in batch):
        indices = [index for index, row in enumerate(batch) if row.check.role == role]
        items = [
            ({**batch[index].row, "reference": batch[index].check.reference}, batch[index].response)
            for index in indices
        ]
        verdicts |= zip(indices, judge(verifier, items, role), strict=True)  # type: ignore[arg-type]
    return [verdicts[index] for index in range(len(batch))]


_worker_verifier: Verifier


def _start_worker(spec: str, params: Mapping[str, Any], folder: str) -> None:
    global _worker_verifier
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent, which writes, handles Ctrl-C
    os.chdir(folder)
    _worker_verifier = load(spec, params)


def _judge_in_worker(batch: Sequence[ResponseCheck]) -> list[Verdict]:
    return judge_batch(_worker_verifier, batch)


def audit_rows(
    name: str,
    verifier: Verifier,
    rows: Iterable[ResponseCheck | LineMistake],
    source: str,
    opened: bool,
    out: Path | None,
) -> int:
    """Audit the rows, print the report and write it to `out`. Returns 0 if nothing is wrong, else 1.

    Raises RowError, after the report, if rows are malformed.
    """
    mistakes: list[LineMistake] = []

    def sound_rows() -> Iterator[tuple[int, Row]]:
        for item in rows:
            if isinstance(item, LineMistake):
                mistakes.append(item)
            else:
                yield item.line, {**item.row, "id": item.id, "checks": [asdict(item.check)]}

    with counting("auditing") as on_rows:
        report = audit(sound_rows(), Alone(verifier, lambda row: checks_of(row)[0]), opened=opened, on_rows=on_rows)
    if not report.rows and not mistakes:
        raise RowError(f"{source}: it has no rows")
    subject = f"{name} on {source}"
    print(told(report, subject))
    if out is not None:
        write_json(out, report.record(subject))
    if mistakes:
        raise RowError(mistakes_text(source, mistakes, "the others were audited"))
    sys.stdout.flush()
    return 0 if report.passed else 1


@dataclass
class VerdictCounts:
    """Counts verdicts one by one. It keeps only 8 bytes of each (its seconds), for the percentiles."""

    rows: int = 0
    scored: int = 0
    total: float = 0.0
    """Sum of the scores."""
    full: int = 0
    """Verdicts with score 1."""
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    started: float = field(default_factory=time.monotonic)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.rows += 1
        self.statuses[verdict.status] += 1
        self.seconds.append(verdict.seconds)
        if verdict.score is not None:
            self.scored += 1
            self.total += verdict.score
            self.full += verdict.score == 1

    @property
    def faults(self) -> int:
        """How many rows could not be judged."""
        return self.rows - self.scored

    @property
    def fault_share(self) -> float:
        """The share of rows that could not be judged; 0 if there are no rows."""
        return self.faults / self.rows if self.rows else 0.0

    def text(self, name: str) -> str:
        """The summary: a few lines of text."""
        took = time.monotonic() - self.started
        mean = f"{self.total / self.scored:.4f}" if self.scored else "-"
        statuses = ", ".join(
            f"{status} {count} ({count / self.rows:.1%})" for status, count in self.statuses.most_common()
        )
        return "\n".join(
            (
                f"{name}: {self.rows} rows in {took:.1f} s ({self.rows / took if took else 0:.0f} rows/s)",
                f"  score   mean {mean}, {self.full} of {self.scored} have 1",
                f"  status  {statuses or '-'}",
                f"  seconds p50 {percentile(self.seconds, 50):.6f}, p99 {percentile(self.seconds, 99):.6f}, "
                f"most {max(self.seconds, default=0.0):.6f}",
                f"  faults  {self.faults} ({self.fault_share:.1%})",
            )
        )


def percentile(values: array[float], share: int) -> float:
    """The smallest value that at least `share` percent of the values do not exceed; 0 if there are no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    # -(-a // b) rounds up: the rank, from 1, is the ceiling of `share` percent of the number of values.
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


@contextmanager
def counting(what: str, total: int | None = None, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar. Yields a function to call with how much is done of `total` (None: not known)."""
    if not (show and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
