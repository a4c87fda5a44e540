"""Kind ``date``: calendar dates, times of day, or both, equal if they say the same, however they are written.

Nothing is filled in or guessed, as general parsers of dates do: ``January 2`` is no date of this year, ``3:45`` no
afternoon. ``12/06/2024``, of which nobody knows the month, equals only what has the same two numbers in this order.
"""

import calendar
import functools
import re
from dataclasses import dataclass, replace
from datetime import date as calendar_date
from typing import Literal

from prism.services.grader.kinds.spelling.notation import plain
from prism.services.grader.verdict import Match, Options, Unreadable, shown

MAX_DATE_CHARS = 80

_MONTHS = [name.lower() for name in calendar.month_name[1:]]
_DAYS = [name.lower() for name in calendar.day_name]
_MONTH_NAMES = "|".join([f"{month[:3]}(?:{month[3:]})?" if month[3:] else month for month in _MONTHS]) + "|sept"
_DAY_NAMES = "|".join(f"{day[:3]}(?:{day[3:]})?" for day in _DAYS) + "|tues|thur|thurs"
_MONTH = rf"(?P<name>{_MONTH_NAMES})\.?"
_DAY, _YEAR = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?", r"(?P<year>[0-9]{4})"
# Each is a whole date; the first that fits is it. Two numbers before a year may be day and month or month and day.
_DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_YEAR}(?P<mark>[-/.])(?P<month>[0-9]{{1,2}})(?:(?P=mark)(?P<day>[0-9]{{1,2}}))?",
        rf"(?P<one>[0-9]{{1,2}})(?P<mark>[-/.]) ?(?P<other>[0-9]{{1,2}})(?P=mark) ?{_YEAR}",
        rf"{_MONTH} {_DAY}(?:,? {_YEAR})?",
        rf"(?:the )?{_DAY}(?: of)?[ -]{_MONTH}(?:,?[ -]{_YEAR})?",
        rf"{_MONTH}(?:,| of)? {_YEAR}",
        rf"(?P<month>[0-9]{{1,2}})/{_YEAR}",
        rf"{_YEAR},? {_MONTH}(?: {_DAY})?",
        r"(?:(?P<year>[0-9]{4}) ?年 ?)?(?P<month>[0-9]{1,2}) ?月(?: ?(?P<day>[0-9]{1,2}) ?[日号])?",
        rf"{_YEAR} ?年?",
    )
]
_HALF = r"(?P<half>[ap])\.? ?m\b\.?"
_TIME = re.compile(
    rf"(?P<hour>[0-9]{{1,2}}) ?: ?(?P<minute>[0-9]{{2}})(?: ?: ?(?P<second>[0-9]{{2}}))?(?:\.0+)?(?: ?{_HALF})?"
    rf"(?: ?(?P<zone>z|utc|gmt|(?:utc|gmt)?[+-][0-9]{{2}}:?[0-9]{{2}}))?",
    re.IGNORECASE,
)
_HOUR = re.compile(rf"(?P<hour>[0-9]{{1,2}})(?:\.(?P<minute>[0-9]{{2}}))? ?{_HALF}", re.IGNORECASE)
_CLOCK = re.compile(r"(?P<hour>[0-9]{1,2}) ?o['’]clock(?: ?(?P<half>[ap])\.? ?m\.?)?", re.IGNORECASE)
_CHINESE = re.compile(
    r"(?P<part>上午|早上|凌晨|下午|晚上)? ?(?P<hour>[0-9]{1,2}) ?[点时](?: ?(?P<minute>[0-9]{1,2}) ?分|(?P<o>整))?"
)
_AFTERNOON = re.compile(
    r"(?P<part>上午|早上|凌晨|下午|晚上) ?(?P<hour>[0-9]{1,2}) ?: ?(?P<minute>[0-9]{2})(?: ?: ?(?P<second>[0-9]{2}))?"
)
_TIMES = (_TIME, _HOUR, _CLOCK, _CHINESE, _AFTERNOON)
_SAID = re.compile(r"(?:on|(?:the )?(?:date|time)(?: is|:)) ", re.IGNORECASE)
_NAMED = {"noon": (12, 0), "12 noon": (12, 0), "midnight": (0, 0), "12 midnight": (0, 0)}
_WEEKDAY = re.compile(rf"(?P<weekday>{_DAY_NAMES})\.?,? (?=[0-9a-z])", re.IGNORECASE)
_JOINTS = re.compile(r"(?<=[0-9])T(?=[0-9])|,? at |, | ")


@dataclass(frozen=True, slots=True)
class Moment:
    """Only what was written; ``day`` and ``month`` in all readings that are dates. ``zone`` in minutes from UTC."""

    days: frozenset[tuple[int | None, int | None, int | None]] = frozenset()  # (year, month, day)
    first: tuple[int | None, int | None, int | None] | None = None  # of two readings that with the month first
    weekday: int | None = None
    time: tuple[int, int, int] | None = None
    zone: int | None = None

    @property
    def is_year(self) -> bool:
        """Whether it is a year alone, which is a number to ``auto``."""
        return self.time is None and all(month is None for _, month, _ in self.days)

    @property
    def is_month(self) -> bool:
        return self.time is None and all(day is None for _, _, day in self.days)


def read(text: str, options: Options) -> Moment:
    """Raises Unreadable, also for days that no calendar has."""
    moment = parse_moment(text)
    if moment is None:
        raise Unreadable(f"not a date or a time: {shown(text)!r}")
    return moment


def same(gold: Moment, answer: Moment, options: Options) -> Match:
    right = gold == answer or (_instant(gold) or gold) == _instant(answer)
    return Match(right, "date: the same" if right else "date: different")


def _instant(moment: Moment) -> int | None:
    """Its seconds in UTC; None where more than one is meant."""
    if moment.time is None or moment.zone is None or len(moment.days) != 1:
        return None
    ((year, month, day),) = moment.days
    if year is None or month is None or day is None:
        return None
    hour, minute, second = moment.time
    ordinal = calendar_date(year, month, day).toordinal()
    return ((ordinal * 24 + hour) * 60 + minute - moment.zone) * 60 + second


@functools.lru_cache(maxsize=4096)
def parse_moment(text: str) -> Moment | None:
    """The date, the time or both that ``text`` is; None if it is none."""
    if len(text) > MAX_DATE_CHARS:
        return None
    line = plain(text)
    if line is None:
        return None
    line = _SAID.sub("", line, count=1) if _SAID.match(line) else line
    if (clock := _time(line)) or (clock := _time(line.removeprefix("at "))):
        return Moment(time=clock[0], zone=clock[1])
    if found := _date(line):
        return found
    # A date and a time: tried at each joint, of which a date has a few.
    for joint in _JOINTS.finditer(line):
        before, after = line[: joint.start()], line[joint.end() :]
        for day, time in ((before, after), (after, before)):
            if (clock := _time(time, offset=joint[0] == "T")) and (found := _date(day.removeprefix("on "))):
                return replace(found, time=clock[0], zone=clock[1])
    return None


def _date(text: str) -> Moment | None:
    weekday = None
    if named := _WEEKDAY.match(text):
        weekday = next(i for i, day in enumerate(_DAYS) if day.startswith(named["weekday"].lower()[:3]))
        text = text[named.end() :]
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            break
    else:
        return None
    parts = match.groupdict()
    year = int(parts["year"]) if parts.get("year") else None
    if parts.get("one"):
        one, other = int(match["one"]), int(match["other"])
        readings = {(year, one, other), (year, other, one)}
    else:
        day = int(parts["day"]) if parts.get("day") else None
        name = (parts.get("name") or "").lower()[:3]
        month = int(parts["month"]) if parts.get("month") else None
        if name:
            month = next(i for i, known in enumerate(_MONTHS, 1) if known.startswith(name))
        readings = {(year, month, day)}
    days = frozenset(reading for reading in readings if _exists(*reading))
    if not days or (weekday is not None and not parts.get("day") and not parts.get("one")):
        return None
    if weekday is not None and year is not None:
        days = frozenset((y, m, d) for y, m, d in days if calendar_date(y or 1, m or 1, d or 1).weekday() == weekday)
        weekday = None
    if not days:
        return None
    # 12/06 is no 06/12, though both have the same two readings.
    first = (year, int(match["one"]), int(match["other"])) if len(days) > 1 else None
    return Moment(days, first, weekday)


def _exists(year: int | None, month: int | None, day: int | None) -> bool:
    try:
        calendar_date(2000 if year is None else year, 1 if month is None else month, 1 if day is None else day)
    except ValueError:
        return False
    return True


def _time(text: str, offset: bool = False) -> tuple[tuple[int, int, int], int | None] | None:
    if named := _NAMED.get(text.lower()):
        return (*named, 0), None
    match = next(
        (m for pattern in (_TIME, _HOUR, _CLOCK, _CHINESE, _AFTERNOON) if (m := pattern.fullmatch(text))), None
    )
    if match is None:
        return None
    parts = match.groupdict()
    hour, minute, second = (int(parts.get(name) or 0) for name in ("hour", "minute", "second"))
    half: Literal["a", "p"] | str | None = (parts.get("half") or "").lower() or None
    if part := parts.get("part"):
        half = ("p" if part in ("下午", "晚上") else "a") if hour <= 12 else None
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "p" else 0)
    if hour > 23 or minute > 59 or second > 59:
        return None
    zone = parts.get("zone")
    # 12:30-13:45 are two times, but for what stands behind the T of ISO 8601.
    if zone and zone[0] == "-" and not offset and not parts.get("second"):
        return None
    return (hour, minute, second), None if zone is None else _minutes(zone.lower())


def _minutes(zone: str) -> int:
    digits = re.sub("[^0-9]", "", zone)
    minutes = int(digits[:2]) * 60 + int(digits[2:]) if digits else 0
    return -minutes if "-" in zone else minutes
