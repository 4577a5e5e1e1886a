"""`qwq-rl verify --audit`: one verifier and the rows of a source."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from qwq_rl.audit.audit import Alone, audit
from qwq_rl.audit.counting import counting
from qwq_rl.audit.findings import told
from qwq_rl.audit.responses import Asked, Mistake
from qwq_rl.data.row import Row, checks_of
from qwq_rl.data.sources import SHOWN
from qwq_rl.errors import RowError
from qwq_rl.run_folder.files import write_json
from qwq_rl.verifiers import Verifier


def audit_rows(
    name: str, verifier: Verifier, rows: Iterable[Asked | Mistake], source: str, opened: bool, out: Path | None
) -> int:
    """Audit, tell, and write the report to `out`; 0 where nothing is wrong, else 1. Raises RowError for bad rows."""
    mistakes: list[Mistake] = []

    def numbered() -> Iterator[tuple[int, Row]]:
        for one in rows:
            if isinstance(one, Mistake):
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
