"""The brace pattern of numbered files, as shells and webdataset read it."""

import re


def brace_pattern(names: list[str]) -> str | None:
    """A brace pattern for sorted names that are numbered without a gap; a name alone stands for itself."""
    if len(names) == 1:
        return names[0]
    first, last = (re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in (names[0], names[-1]))
    if first is None or last is None:
        return None
    (before, low, after), high = first.groups(), last[2]
    numbers = range(int(low), int(high) + 1)
    numbered = len(numbers) == len(names) and names == [f"{before}{n:0{len(low)}d}{after}" for n in numbers]
    return f"{before}{{{low}..{high}}}{after}" if numbered else None
