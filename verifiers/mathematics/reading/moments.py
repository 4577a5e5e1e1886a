"""Times of the day and dates, as people write them.

A date with an open order of day and month, such as 3/4/2020, stays text.
"""

from __future__ import annotations

import re

Moment = tuple[str, ...]
"""Its kind (`time`, `clock` or `date`), and its parts as whole numbers without leading zeros, or `any`."""

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
"""Characters of the longest text that can be a moment."""
SPOKEN = re.compile(r"\b([ap])\.? ?m\b\.?")


def moment(text: str) -> Moment | None:
    """The time or date that the whole of `text` states, or None.

    A time that says whether it is before or after noon is a `time`, converted to 24 hours. A time without that is a
    `clock`, which may be a ratio as well.
    """
    # Without a digit, only `noon` and `midnight` are moments.
    if len(text) > LONGEST or (
        not any(char.isdigit() for char in text) and not text.casefold().endswith(("noon", "ght"))
    ):
        return None
    plain = " ".join(SPOKEN.sub(r"\1m", text.casefold().replace("{:}", ":")).replace("^{", "").replace("}", "").split())
    return _time(plain) or _clock(plain) or _date(plain)


def agree(one: Moment, other: Moment) -> bool | None:
    """Whether two moments are the same. None for two different clocks, which may be ratios."""
    if one[0] == other[0] == "clock":
        return True if one == other else None
    if "date" in (one[0], other[0]):
        return one == other
    return one[1:] == other[1:]


def _time(plain: str) -> Moment | None:
    match = TIME.fullmatch(plain)
    if match is None:
        return None
    half = match[4] or match[5]
    hour, minute, second = (int(match[group] or 0) for group in (1, 2, 3))
    if match[5]:
        hour = 12
    if (
        not 1 <= hour <= 12
        or minute > 59
        or second > 59
        or (half in ("noon", "midnight") and (hour, minute) != (12, 0))
    ):
        return None
    # 12 am is 0 o'clock, 12 pm is 12 o'clock.
    hour = hour % 12 + (12 if half in ("pm", "noon") else 0)
    return "time", str(hour), str(minute), str(second)


def _clock(plain: str) -> Moment | None:
    """A time of 24 hours. From 1:00 to 12:59 it could be before or after noon, unless a zero leads: then None."""
    match = CLOCK.fullmatch(plain)
    if match is None:
        return None
    hour, minute, second = (int(match[group] or 0) for group in (1, 2, 3))
    if hour > 23 or minute > 59 or second > 59 or (1 <= hour <= 12 and not match[1].startswith("0")):
        return None
    return "clock", str(hour), str(minute), str(second)


def _date(plain: str) -> Moment | None:
    date_match = next((match for match in (pattern.fullmatch(plain) for pattern in DATES) if match), None)
    if date_match is None:
        return None
    month, day = MONTHS.get(date_match["month"]) or int(date_match["month"]), int(date_match["day"])
    if not 1 <= month <= 12 or not 1 <= day <= 31:
        return None
    return "date", date_match["year"] or "any", str(month), str(day)
