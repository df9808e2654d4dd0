import json
import math
import re
from collections.abc import Iterable

import pytest

from inpaint_dist import train
from inpaint_dist.tracking.health import FEWEST, RULES, Health

TOTAL = 10_000
WELL = {
    "d/accuracy_real": 0.8,
    "d/accuracy_fake": 0.8,
    "health/sharpness": 0.9,
    "health/border": 1.0,
    "health/checkerboard": 1.0,
    "health/colour_gap": 0.01,
    "norm/g": 1.0,
    "norm/d": 1.0,
}


def told(health: Health, course: Iterable[dict[str, float]], start: int = 100) -> list[tuple[int, str]]:
    """What is said of figures that are reported every 100 steps: (step, sentence)."""
    steps = enumerate(course)
    return [
        (start + 100 * n, line) for n, values in steps for line in health.report(start + 100 * n, {**WELL, **values})
    ]


SATURATED = {"d/accuracy_real": 1.0, "d/accuracy_fake": 1.0}


def test_a_healthy_run_says_nothing():
    assert told(Health(TOTAL), [{}] * 100) == []


def test_a_saturated_discriminator_is_told_once_with_its_step_its_figures_and_the_cure_and_so_is_its_return():
    said = told(Health(TOTAL), [{}] * 40 + [SATURATED] * 40 + [{}] * 40)
    assert [step for step, _ in said] == [5100, 8200]
    assert [line for _, line in said] == [
        "discriminator saturated since step 5,100 (right on 98% of photos and 98% of completions): "
        "lower --lr-d or raise --objective.r1-weight",
        "discriminator no longer saturated since step 8,200",
    ]


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (SATURATED, "discriminator saturated since"),
        ({"d/accuracy_real": 0.5, "d/accuracy_fake": 0.48}, "cannot tell photos from completions since"),
        ({"health/sharpness": 0.1}, "holes blurred since"),
        ({"health/border": 4.0}, "a seam around the holes since"),
        ({"health/checkerboard": 6.0}, "a grid of 2 or 4 pixels in the holes since"),
        ({"health/colour_gap": 0.3}, "holes of another colour"),
    ],
)
def test_each_figure_that_leaves_its_range_has_its_sentence_and_one_when_it_is_back(
    figures: dict[str, float], words: str
):
    said = [line for _, line in told(Health(TOTAL), [{}] * 40 + [figures] * 60 + [{}] * 60)]
    assert len(said) == 2, said
    assert words in said[0] and "--" in said[0]
    assert "--" not in said[1] and "since step" in said[1]


@pytest.mark.parametrize("one", ["d/accuracy_real", "d/accuracy_fake"])
def test_a_discriminator_that_calls_everything_real_or_fake_is_neither_saturated_nor_lost(one: str):
    course = [{"d/accuracy_real": 0.0, "d/accuracy_fake": 0.0, one: 1.0}] * 100
    assert told(Health(TOTAL), course) == []


@pytest.mark.parametrize(("network", "cure"), [("g", "--clip-grad"), ("d", "--clip-grad-d")])
def test_a_gradient_norm_that_jumps_is_told_at_once_and_a_new_level_becomes_its_own(network: str, cure: str):
    said = told(Health(TOTAL), [{}] * 40 + [{f"norm/{network}": 50.0}] * 60)
    assert said[0][0] == 4100
    assert "gradient norm has jumped since step 4,100 (50 times its own average)" in said[0][1]
    assert said[0][1].endswith(cure)
    assert len(said) == 2 and "is near its average again" in said[1][1]


def test_the_warm_up_is_silent_and_what_lasts_beyond_it_is_told_from_its_first_step_on():
    said = told(Health(TOTAL), [{**SATURATED, "health/sharpness": 0.1}] * 60)
    assert [step for step, _ in said] == [1000, 2000]  # the discriminator's first, a young generator's blur later
    assert all("since step 100 (" in line for _, line in said)
    assert told(Health(TOTAL), [SATURATED] * 9 + [{}] * 50) == []


def test_a_short_run_needs_a_few_reports_as_well():
    assert [step for step, _ in told(Health(20), [SATURATED] * 9)] == [100 * FEWEST]


def test_a_figure_that_wavers_about_its_limit_is_not_told_again_and_again():
    course = [{"d/accuracy_real": 0.97 + 0.03 * (n % 2), "d/accuracy_fake": 0.975 + 0.02 * (n % 2)} for n in range(200)]
    course = [*[SATURATED] * 20, *course]
    assert len(told(Health(TOTAL), course)) == 1


def test_values_that_are_absent_or_not_finite_are_passed_over():
    health = Health(TOTAL)
    assert health.report(1, {}) == []
    bad = {"d/accuracy_real": math.nan, "norm/g": math.inf, "norm/d": 0.0, "health/border": math.nan}
    assert told(health, [{}] * 30 + [bad] * 5 + [{}] * 30) == []
    json.dumps(health.state(), allow_nan=False)


@pytest.mark.parametrize("stop", [1, 12, 41, 43, 60, 99, 101])
def test_saved_as_json_and_loaded_at_any_report_it_says_the_same(stop: int):
    ill = {**SATURATED, "health/sharpness": 0.1, "norm/g": 70.0, "norm/d": 1 / 3}
    course = [{}] * 40 + [ill] * 60 + [{}] * 30
    whole, first, second = Health(TOTAL), Health(TOTAL), Health(TOTAL)
    expected = told(whole, course)
    found = told(first, course[:stop])
    second.load_state(json.loads(json.dumps(first.state())))
    found += told(second, course[stop:], start=100 + 100 * stop)
    assert found == expected and len(expected) == 6
    assert second.state() == whole.state()


def test_every_cure_names_flags_that_there_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        train.parse(["unet", "--help"])
    there = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    named = {flag for rule in RULES.values() for flag in re.findall(r"--[a-z][\w.-]*", rule.cure)}
    assert len(named) >= 8
    assert named <= there


def test_every_rule_comes_back_nearer_than_it_leaves():
    for name, rule in RULES.items():
        assert (rule.back < rule.limit) == rule.above, name
