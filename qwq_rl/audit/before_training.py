"""The audit before an rl stage trains: of a sample of rows, within a time limit, once for equal rows and verifiers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from qwq_rl.audit.audit import audit
from qwq_rl.audit.findings import BROKEN, Report, listed, told
from qwq_rl.config.stages import RlRecipe
from qwq_rl.data.row import Row
from qwq_rl.errors import UserError
from qwq_rl.rewards.scorer import Scorer
from qwq_rl.rewards.versions import digest, verifier_versions
from qwq_rl.run_folder.files import StageFolder, read_json, write_json

ROWS = 64
"""How many rows of each domain are audited: the first ones that the stage trains on."""
SECONDS = 15.0
"""Time limit of the audit of a stage. At least one batch of rows is audited."""


def audit_stage(rows: Sequence[Row], scorer: Scorer, recipe: RlRecipe, folder: StageFolder) -> None:
    """Audit a sample of `rows`, which are in the order of training. The report goes to `audit.json`.

    Does nothing if that file already has the report of the same rows, verifiers and gates. Raises UserError, which
    names rows, if more rows of a domain are broken than `limits.broken_share` allows, or if all of them accept garbage.
    """
    sample = list(_sample(rows))
    key = _key(sample, recipe)
    if (read_json(folder.audit) or {}).get("key") == key:
        return
    report = audit(enumerate(sample, 1), scorer, seconds=SECONDS)
    # Only the rows that were audited before the time ran out count.
    refusal = _refusal(report, sample[: report.rows], recipe)
    # A refused audit gets no key, so that the next start does not skip it.
    write_json(folder.audit, {"key": None if refusal else key, **report.record(folder.name)})
    if refusal:
        raise UserError(refusal)
    print(told(report, f"the rows of {folder.name}"), file=sys.stdout if report.passed else sys.stderr)


def _sample(rows: Sequence[Row]) -> Iterator[Row]:
    """The first ROWS different rows of each domain."""
    seen: set[int] = set()
    count_of_domain: Counter[str] = Counter()
    for row in rows:
        # The order of training may repeat a row: the same object counts once.
        if id(row) not in seen and count_of_domain[row["domain"]] < ROWS:
            seen.add(id(row))
            count_of_domain[row["domain"]] += 1
            yield row


def _key(sample: Sequence[Row], recipe: RlRecipe) -> str:
    """A digest of everything that decides the result of the audit."""
    versions = verifier_versions(recipe.domains)
    rules = {name: [asdict(check) for check in domain.checks] for name, domain in recipe.domains.items()}
    parts: list[Any] = [list(sample), versions, rules, list(recipe.gates), recipe.limits.broken_share]
    return digest(json.dumps(parts, sort_keys=True, default=repr))


def _refusal(report: Report, audited: Sequence[Row], recipe: RlRecipe) -> str:
    """Say why the stage must not train; "" if it may."""
    limit, problems = recipe.limits.broken_share, list[str]()
    for domain, count in sorted(Counter(row["domain"] for row in audited).items()):
        broken, garbage = report.broken(domain), report.count("garbage", domain)
        if broken > limit * count:
            problems.append(f"{domain}: of {broken} of {count} rows a right answer is not, or not always, rewarded")
            problems += listed(
                [finding for finding in report.findings if finding.domain == domain and finding.kind in BROKEN]
            )
        if garbage == count:
            problems.append(f"{domain}: in every row an answer that answers nothing passes")
            problems += listed(
                [finding for finding in report.findings if finding.domain == domain and finding.kind == "garbage"]
            )
    if not problems:
        return ""
    advice = (
        f"Mend or leave out these rows, or mend the verifier (`qwq-rl verify NAME ROWS --audit` tells all), or set "
        f"limits.broken_share, now {limit:g}. A reference that is no answer: docs/verifiers.md, `self_answer`."
    )
    return "\n".join(["the audit before training found what must not be trained on:", *problems, advice])
