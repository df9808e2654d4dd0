import math

import pytest

from inpaint_dist.duration import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (44.6, "45s"), (59.7, "1m00s"), (200, "3m20s"), (5040, "1h24m"), (183600, "2d03h"), (math.inf, "?")],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds, text):
    assert duration(seconds) == text
