"""The audit before an rl stage trains: on a sample, within a time, and once for the same rows and verifiers."""

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
"""Rows of each domain that are audited: the first ones that the stage trains on."""
SECONDS = 15.0
"""How long the audit of a stage may take; at least one batch of rows is audited."""


def audit_stage(rows: Sequence[Row], scorer: Scorer, recipe: RlRecipe, folder: StageFolder) -> None:
    """Audit a sample of `rows`, which stand in the order of training; the report goes to `audit.json`.

    Does nothing where that holds the report of the same rows, verifiers and gates already. Raises UserError, naming
    rows, where more of a domain's rows are broken than `limits.broken_share` allows, or all of them accept garbage.
    """
    sample = list(_sample(rows))
    key = _key(sample, recipe)
    if (read_json(folder.audit) or {}).get("key") == key:
        return
    report = audit(enumerate(sample, 1), scorer, seconds=SECONDS)
    refused = _refusal(report, sample[: report.rows], recipe)
    write_json(folder.audit, {"key": None if refused else key, **report.record(folder.name)})
    if refused:
        raise UserError(refused)
    print(told(report, f"the rows of {folder.name}"), file=sys.stdout if report.passed else sys.stderr)


def _sample(rows: Sequence[Row]) -> Iterator[Row]:
    seen: set[int] = set()
    taken: Counter[str] = Counter()
    for row in rows:
        if id(row) not in seen and taken[row["domain"]] < ROWS:
            seen.add(id(row))
            taken[row["domain"]] += 1
            yield row


def _key(sample: Sequence[Row], recipe: RlRecipe) -> str:
    versions = verifier_versions(recipe.domains)
    rules = {name: [asdict(check) for check in domain.checks] for name, domain in recipe.domains.items()}
    what: list[Any] = [list(sample), versions, rules, list(recipe.gates), recipe.limits.broken_share]
    return digest(json.dumps(what, sort_keys=True, default=repr))


def _refusal(report: Report, audited: Sequence[Row], recipe: RlRecipe) -> str:
    """Why the stage must not train, empty where it may."""
    limit, wrong = recipe.limits.broken_share, list[str]()
    for domain, count in sorted(Counter(row["domain"] for row in audited).items()):
        broken, garbage = report.broken(domain), report.count("garbage", domain)
        if broken > limit * count:
            wrong.append(f"{domain}: of {broken} of {count} rows a right answer is not, or not always, rewarded")
            wrong += listed([one for one in report.findings if one.domain == domain and one.kind in BROKEN])
        if garbage == count:
            wrong.append(f"{domain}: in every row an answer that answers nothing passes")
            wrong += listed([one for one in report.findings if one.domain == domain and one.kind == "garbage"])
    if not wrong:
        return ""
    advice = (
        f"Mend or leave out these rows, or mend the verifier (`qwq-rl verify NAME ROWS --audit` tells all), or set "
        f"limits.broken_share, now {limit:g}. A reference that is no answer: docs/verifiers.md, `self_answer`."
    )
    return "\n".join(["the audit before training found what must not be trained on:", *wrong, advice])
