"""Answers that must be one JSON value which fits a given schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, time
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from jsonschema import FormatChecker
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from qwq_rl.verifiers.builtin.json_text import NotJson, parse_one, unfenced
from qwq_rl.verifiers.contract import Problem, Response, Verdict, Verifier, run_as
from qwq_rl.verifiers.verdicts import bad_reference, correct, empty_answer, shown, wrong

MOST_MISTAKES = 100
"""At most this many mistakes are collected; the reason names the most relevant one."""


FORMATS = FormatChecker(formats=["date", "email", "idn-email", "ipv4", "ipv6", "regex", "uuid"])
"""The formats that jsonschema checks without further packages. `date-time`, `time`, `uri` and `hostname` are added
below; other formats are not checked."""

DATE = r"\d\d\d\d-\d\d-\d\d"
TIME = r"\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


@run_as("process", deadline_s=5.0, cached=True)
def json_schema() -> Verifier:
    """A verifier: the answer is exactly one JSON value, fenced or not, that fits the reference, a JSON schema.

    The formats in `FORMATS` are checked. Nothing is ever fetched. A pattern or an alternative of a schema can take
    exponential time on some answers. So the verifier runs in a process that is killed after 5 seconds. A response that
    causes this twice scores 0, so that a response cannot gain by it.
    """
    return _verify


def _verify(problem: Problem, response: Response) -> Verdict:
    schema = problem.get("reference")
    if not isinstance(schema, Mapping):
        return bad_reference(f"the reference must be a JSON schema, an object, not {shown(repr(schema))}")
    try:
        # As a text, because lru_cache needs a key that can be hashed.
        validator = _validator(json.dumps(schema, sort_keys=True))
    except SchemaError as error:
        return bad_reference(f"the reference is no JSON schema: {shown(error.message, 120)}")
    except (TypeError, ValueError, RecursionError) as error:
        return bad_reference(f"the reference is no JSON schema: {shown(error, 120)}")
    answer = response.answer.strip()
    if not answer:
        return empty_answer(response)
    try:
        value = parse_one(unfenced(answer))
        mistake = best_match(islice(validator.iter_errors(value), MOST_MISTAKES))
    except NotJson as error:
        return wrong(f"the answer is not one JSON value: {error}", answer)
    except Unresolvable as error:
        return bad_reference(f"the schema refers to what it does not contain: {error}")
    except re.error as error:
        return bad_reference(f"a pattern of the schema is none that Python reads: {error}")
    except (OverflowError, RecursionError) as error:
        return wrong(f"the answer cannot be checked: {error}", answer)
    if mistake is None:
        return correct("the answer fits the schema", answer)
    return wrong(f"{shown(mistake.json_path)}: {shown(mistake.message, 120)}", answer)


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """A validator that never fetches a schema. Raises SchemaError if the schema itself is wrong."""
    parsed = json.loads(schema)
    validator_class: Any = validator_for(parsed)
    validator_class.check_schema(parsed, format_checker=FORMATS)
    return validator_class(parsed, registry=Registry(), format_checker=FORMATS)


@FORMATS.checks("date-time", raises=ValueError)
def _date_time(value: object) -> bool:
    """RFC 3339: date, time and offset."""
    if not isinstance(value, str):
        return True
    # The pattern checks the form; fromisoformat raises ValueError for a date such as 31 February.
    return bool(re.fullmatch(rf"(?a:{DATE}[Tt ]{TIME})", value)) and bool(datetime.fromisoformat(value.upper()))


@FORMATS.checks("time", raises=ValueError)
def _time(value: object) -> bool:
    """RFC 3339: time and offset."""
    if not isinstance(value, str):
        return True
    return bool(re.fullmatch(f"(?a:{TIME})", value)) and time.fromisoformat(value.upper()) is not None


@FORMATS.checks("uri", raises=ValueError)
def _uri(value: object) -> bool:
    """A scheme, something after it, and no white space."""
    if not isinstance(value, str):
        return True
    parts = urlsplit(value)
    return bool(parts.scheme and (parts.netloc or parts.path)) and not re.search(r"\s", value)


@FORMATS.checks("hostname", raises=ValueError)
def _hostname(value: object) -> bool:
    return not isinstance(value, str) or bool(len(value) <= 253 and re.fullmatch(rf"{LABEL}(?:\.{LABEL})*", value))
