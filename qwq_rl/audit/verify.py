"""Judge responses with a verifier, or audit it: `qwq-rl verify VERIFIER rows.jsonl [--out FILE] [--audit]`.

One verdict a row, in input order, as it comes: what is written stays whatever happens later. `--audit` asks instead
whether verifier and rows can be trusted (`qwq_rl.audit.audit`).
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
"""Rows judged in one call: what a crash of the machine can cost, and enough for verifiers that batch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `qwq-rl verify`. Returns 0; 1 where the audit failed or too much could not be judged; 2 for bad rows."""
    asked = parser().parse_args(arguments)
    chosen = choose(asked.verifier, asked.recipe, asked.param)
    check_out(asked.out, asked.rows)
    if asked.audit and asked.jobs > 1:
        raise UserError("--jobs does nothing with --audit: leave it out")
    if asked.audit:
        from qwq_rl.audit.verify import audit_rows

        verifier = load(chosen.spec, chosen.params)
        return audit_rows(chosen.name, verifier, _rows(asked, chosen), asked.rows, asked.thinking_opened, asked.out)
    load(chosen.spec, chosen.params)  # a mistake in it is told before any row is read
    rows = _rows(asked, chosen)
    return _verify(chosen, rows, asked.rows, asked.out, asked.jobs, asked.fault_share)


def _rows(asked: argparse.Namespace, chosen: Chosen) -> Iterator[ResponseCheck | LineMistake]:
    return read_asked(
        asked.rows,
        chosen.name,
        check=asked.check,
        role=asked.role,
        opened=asked.thinking_opened,
        responses=not asked.audit,
        limit=asked.limit,
        mapper=asked.mapper,
    )


def _verify(
    chosen: Chosen,
    rows: Iterable[ResponseCheck | LineMistake],
    source: str,
    out: Path | None,
    jobs: int,
    fault_share: float,
) -> int:
    tally, mistakes, interrupted = VerdictCounts(), list[LineMistake](), False
    with _writer(out) as write, counting("verifying", _count(source), show=out is not None) as on_rows:
        try:
            for one, verdict in _verdicts(chosen, _sound(rows, mistakes), jobs):
                write.write(verdict_line(one.id, verdict) + "\n")
                tally.add(verdict)
                if tally.rows % BATCH == 0:
                    write.flush()
                    on_rows(tally.rows)
        except KeyboardInterrupt:
            interrupted = True
    if tally.rows or interrupted:
        print(tally.text(chosen.name), file=sys.stderr)
    if interrupted:
        print(f"stopped: the verdicts of the first {tally.rows} rows are written", file=sys.stderr)
        return 130
    if mistakes:
        raise RowError(mistakes_text(source, mistakes, tally.rows))
    if not tally.rows:
        raise RowError(f"{source}: it has no rows")
    if tally.fault_share > fault_share:
        print(f"qwq-rl: {tally.fault_share:.1%} could not be judged, more than --fault-share allows", file=sys.stderr)
        return 1
    return 0


def verdict_line(name: str, verdict: Verdict) -> str:
    """A verdict as a line of the output (docs/contracts.md, "A verdict line")."""
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


def mistakes_text(source: str, mistakes: Sequence[LineMistake], judged: int) -> str:
    """All mistakes of a source in one message."""
    lines = [f"{source}:{mistake.line}: {mistake.what}" for mistake in mistakes[:SHOWN]]
    lines += [f"... and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
    return "\n".join([*lines, f"{len(mistakes)} rows are malformed; the other {judged} were judged"])


@contextmanager
def _writer(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    # A lone surrogate, which JSON may hold and UTF-8 may not, is no reason to lose a verdict.
    with out.open("w", encoding="utf-8", errors="replace") as file:
        yield file


def _count(source: str) -> int | None:
    """How many rows a plain file has, for the bar."""
    if not source.endswith(".jsonl") or not sys.stderr.isatty() or not Path(source).is_file():
        return None
    with Path(source).open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _sound(rows: Iterable[ResponseCheck | LineMistake], mistakes: list[LineMistake]) -> Iterator[ResponseCheck]:
    for row in rows:
        if isinstance(row, LineMistake):
            mistakes.append(row)
        else:
            yield row


def _verdicts(chosen: Chosen, rows: Iterator[ResponseCheck], jobs: int) -> Iterator[tuple[ResponseCheck, Verdict]]:
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
    """One verdict a row, in order, each in its check's role."""
    found: dict[int, Verdict] = {}
    for role in dict.fromkeys(one.check.role for one in batch):
        places = [at for at, one in enumerate(batch) if one.check.role == role]
        items = [({**batch[at].row, "reference": batch[at].check.reference}, batch[at].response) for at in places]
        found |= zip(places, judge(verifier, items, role), strict=True)  # type: ignore[arg-type]
    return [found[at] for at in range(len(batch))]


_of_worker: Verifier


def _start_worker(spec: str, params: Mapping[str, Any], folder: str) -> None:
    global _of_worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that writes
    os.chdir(folder)
    _of_worker = load(spec, params)


def _judge_in_worker(batch: Sequence[ResponseCheck]) -> list[Verdict]:
    return judge_batch(_of_worker, batch)


def audit_rows(
    name: str,
    verifier: Verifier,
    rows: Iterable[ResponseCheck | LineMistake],
    source: str,
    opened: bool,
    out: Path | None,
) -> int:
    """Audit, tell, and write the report to `out`; 0 where nothing is wrong, else 1. Raises RowError for bad rows."""
    mistakes: list[LineMistake] = []

    def numbered() -> Iterator[tuple[int, Row]]:
        for one in rows:
            if isinstance(one, LineMistake):
                mistakes.append(one)
            else:
                yield one.line, {**one.row, "id": one.id, "checks": [asdict(one.check)]}

    with counting("auditing") as on_rows:
        report = audit(numbered(), Alone(verifier, lambda row: checks_of(row)[0]), opened=opened, on_rows=on_rows)
    if not report.rows and not mistakes:
        raise RowError(f"{source}: it has no rows")
    what = f"{name} on {source}"
    print(told(report, what))
    if out is not None:
        write_json(out, report.record(what))
    if mistakes:
        lines = [f"{source}:{mistake.line}: {mistake.what}" for mistake in mistakes[:SHOWN]]
        raise RowError("\n".join([*lines, f"{len(mistakes)} rows are malformed; the others were audited"]))
    sys.stdout.flush()
    return 0 if report.passed else 1


@dataclass
class VerdictCounts:
    """Counts verdicts as they come; 8 bytes each are kept, for the percentiles."""

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
        """How many could not be judged."""
        return self.rows - self.scored

    @property
    def fault_share(self) -> float:
        """Their share, 0 of nothing."""
        return self.faults / self.rows if self.rows else 0.0

    def text(self, name: str) -> str:
        """The summary, a few lines."""
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
    """The smallest value that `share` percent of the values do not exceed; 0 where there is none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


@contextmanager
def counting(what: str, total: int | None = None, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with how much is done of `total` (None: not known)."""
    if not (show and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
