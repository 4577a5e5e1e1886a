"""The formats that a JSON schema may ask for, the same ones whatever optional packages are installed."""

from __future__ import annotations

import re
from datetime import datetime, time
from urllib.parse import urlsplit

from jsonschema import FormatChecker

FORMATS = FormatChecker(formats=["date", "email", "idn-email", "ipv4", "ipv6", "regex", "uuid"])
"""Those that jsonschema always knows, with `date-time`, `time`, `uri` and `hostname`; others are not checked."""

DATE = r"\d\d\d\d-\d\d-\d\d"
TIME = r"\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


@FORMATS.checks("date-time", raises=ValueError)
def _date_time(value: object) -> bool:
    """RFC 3339: date, time and offset."""
    if not isinstance(value, str):
        return True
    return bool(re.fullmatch(rf"(?a:{DATE}[Tt ]{TIME})", value)) and bool(datetime.fromisoformat(value.upper()))


@FORMATS.checks("time", raises=ValueError)
def _time(value: object) -> bool:
    """RFC 3339: time and offset."""
    if not isinstance(value, str):
        return True
    return bool(re.fullmatch(f"(?a:{TIME})", value)) and time.fromisoformat(value.upper()) is not None


@FORMATS.checks("uri", raises=ValueError)
def _uri(value: object) -> bool:
    """With a scheme, something after it, and no white space."""
    if not isinstance(value, str):
        return True
    parts = urlsplit(value)
    return bool(parts.scheme and (parts.netloc or parts.path)) and not re.search(r"\s", value)


@FORMATS.checks("hostname", raises=ValueError)
def _hostname(value: object) -> bool:
    return not isinstance(value, str) or bool(len(value) <= 253 and re.fullmatch(rf"{LABEL}(?:\.{LABEL})*", value))
