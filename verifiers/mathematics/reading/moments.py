"""Times of the day and dates, as people write them; a date whose order of day and month is open stays text."""

from __future__ import annotations

import re

Moment = tuple[str, ...]
"""What it is, `time`, `clock` or `date`, and its parts as whole numbers without leading zeros, or `any`."""

MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan", "february feb", "march mar", "april apr", "may may", "june jun", "july jul", "august aug",
            "september sep sept", "october oct", "november nov", "december dec",
        ),
        start=1,
    )
    for name in names.split()
}  # fmt: skip
NAMES = "|".join(sorted(MONTHS, key=len, reverse=True))
TIME = re.compile(r"(?:at )?(\d\d?)(?:[:.](\d\d))?(?::(\d\d))? ?(am|pm|noon|midnight)|(?:at |12 )?(noon|midnight)")
CLOCK = re.compile(r"(?:at )?(\d\d?):(\d\d)(?::(\d\d))?")
DATES = (
    re.compile(rf"(?P<month>{NAMES})\.? (?:the )?(?P<day>\d\d?)(?:st|nd|rd|th)?(?:,? (?P<year>\d{{4}}))?"),
    re.compile(rf"(?:the )?(?P<day>\d\d?)(?:st|nd|rd|th)?(?: of)? (?P<month>{NAMES})\.?(?:,? (?P<year>\d{{4}}))?"),
    re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"),
    re.compile(r"(?:(?P<year>\d{4}) ?年 ?)?(?P<month>\d\d?) ?月 ?(?P<day>\d\d?) ?[日号]"),
)
LONGEST = 40
SPOKEN = re.compile(r"\b([ap])\.? ?m\b\.?")


def moment(text: str) -> Moment | None:
    """The time or date that the whole of `text` says, or None.

    A time with its half of the day is `time`, of 24 hours; one without is `clock`, which may be a ratio as well.
    """
    if len(text) > LONGEST or (
        not any(char.isdigit() for char in text) and not text.casefold().endswith(("noon", "ght"))
    ):
        return None
    plain = " ".join(SPOKEN.sub(r"\1m", text.casefold().replace("{:}", ":")).replace("^{", "").replace("}", "").split())
    return _time(plain) or _clock(plain) or _date(plain)


def agree(one: Moment, other: Moment) -> bool | None:
    """Whether two moments are the same; None for two clocks, which may be ratios."""
    if one[0] == other[0] == "clock":
        return True if one == other else None
    if "date" in (one[0], other[0]):
        return one == other
    return one[1:] == other[1:]


def _time(plain: str) -> Moment | None:
    found = TIME.fullmatch(plain)
    if found is None:
        return None
    half = found[4] or found[5]
    hour, minute, second = (int(found[group] or 0) for group in (1, 2, 3))
    if found[5]:
        hour = 12
    if (
        not 1 <= hour <= 12
        or minute > 59
        or second > 59
        or (half in ("noon", "midnight") and (hour, minute) != (12, 0))
    ):
        return None
    hour = hour % 12 + (12 if half in ("pm", "noon") else 0)
    return "time", str(hour), str(minute), str(second)


def _clock(plain: str) -> Moment | None:
    """A time of 24 hours: one from 1:00 to 12:59 could be of either half of the day, unless a zero leads."""
    found = CLOCK.fullmatch(plain)
    if found is None:
        return None
    hour, minute, second = (int(found[group] or 0) for group in (1, 2, 3))
    if hour > 23 or minute > 59 or second > 59 or (1 <= hour <= 12 and not found[1].startswith("0")):
        return None
    return "clock", str(hour), str(minute), str(second)


def _date(plain: str) -> Moment | None:
    found = next((match for match in (form.fullmatch(plain) for form in DATES) if match), None)
    if found is None:
        return None
    month, day = MONTHS.get(found["month"]) or int(found["month"]), int(found["day"])
    if not 1 <= month <= 12 or not 1 <= day <= 31:
        return None
    return "date", found["year"] or "any", str(month), str(day)
