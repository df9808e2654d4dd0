"""Whether a run is healthy, in plain sentences: one when a figure leaves its range, one when it is back.

The ranges of the pictures' figures (metrics/health.py says what they are) were set on the 109 photos of shards/sample
with their stored masks, by what fills the hole: the mean, and the lowest and highest batch of 8. A level is one of 256.

    fill                                   colour gap          border            sharpness           checkerboard
    the photo                              0                   1                 1                   1
    push-pull                              0.01 (0 - 0.02)     0.95 (0.8 - 1.2)  0.13 (0.07 - 0.21)  0.6 (0.5 - 0.7)
    Telea                                  0.01 (0 - 0.03)     0.80 (0.7 - 1.0)  0.53 (0.25 - 0.96)  0.7 (0.6 - 0.9)
    the photo, blurred with sigma 1        0                   0.91 (0.9 - 1.0)  0.35 (0.29 - 0.42)  0.7 (0.6 - 0.8)
    another photo's pixels                 0.35 (0.16 - 0.64)  22 (9 - 64)       2.1 (1.2 - 3.0)     1.4 (1.1 - 1.7)
    mid-grey                               0.27 (0.13 - 0.44)  18 (7 - 45)       0.12 (0.06 - 0.20)  0.6 (0.5 - 0.7)
    push-pull and white noise of 0.1       0.01 (0 - 0.02)     2.9 (1.6 - 5.2)   5.2 (2.7 - 8.7)     1.7 (1.3 - 1.9)
    push-pull and a board of +-1 level     0.01 (0 - 0.02)     1.02 (0.9 - 1.2)  1.0 (0.5 - 1.8)     5.5 (4.5 - 6.5)
    the photo and a board of +-4 levels    0                   1.6 (1.2 - 2.5)   3.9 (2.2 - 6.6)     20 (17 - 24)
    push-pull and transposed convolutions  0.02 (0.01 - 0.04)  3.1 (1.7 - 6.0)   4.4 (2.4 - 7.7)     20 (18 - 26)

The last are two of kernel 3 and stride 2 with random weights, their output scaled to a deviation of 0.1. Accuracies and
gradient norms were not measured for this: their limits are round numbers.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ACCURACY = ("d/accuracy_real", "d/accuracy_fake")
FEWEST = 5
"""Reports before anything is said."""
RATE = 0.2
"""Share of the newest report in a figure's average; a plain mean until there are as many reports as that makes."""
SLOW_RATE = 0.05
"""The same in the average that a gradient norm is compared with."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A range, and what to say of it. It is left when every figure is beyond `limit`."""

    figures: tuple[str, ...]
    limit: float
    back: float
    """Within the range again is who is not beyond this: nearer than `limit`, so that nobody wavers between the two."""
    above: bool
    """Beyond is above the limit; else below."""
    jump: bool = False
    """The figure's newest value in units of its own average is meant, not its average."""
    late: bool = False
    """For what a young generator has not learned yet: said later."""
    what: str
    detail: str
    """Filled with the figures' levels."""
    cure: str
    again: str
    """What is so again once it is back."""

    def is_beyond(self, levels: list[float], bound: float) -> bool:
        """Whether all levels lie beyond a bound."""
        return all(level > bound if self.above else level < bound for level in levels)


def _gradient(network: str, owner: str, rate: str, clip: str) -> Rule:
    return Rule(
        figures=(network,), limit=20.0, back=5.0, above=True, jump=True,
        what=f"{owner}'s gradient norm has jumped", detail="{:.0f} times its own average",
        cure=f"lower {rate}, or set {clip}", again=f"{owner}'s gradient norm is near its average again",
    )  # fmt: skip


RULES: dict[str, Rule] = {
    "saturated": Rule(
        figures=ACCURACY, limit=0.98, back=0.95, above=True,
        what="discriminator saturated", detail="right on {:.0%} of photos and {:.0%} of completions",
        cure="lower --lr-d or raise --objective.r1-weight", again="discriminator no longer saturated",
    ),
    "lost": Rule(
        figures=ACCURACY, limit=0.55, back=0.6, above=False,
        what="discriminator cannot tell photos from completions",
        detail="right on {:.0%} of photos and {:.0%} of completions",
        cure="raise --lr-d", again="discriminator tells photos from completions again",
    ),
    "blurred": Rule(
        figures=("health/sharpness",), limit=0.25, back=0.3, above=False, late=True,
        what="holes blurred", detail="{:.2f} of the photos' sharpness",
        cure="raise --objective.perceptual-weight or --objective.adversarial-weight", again="holes no longer blurred",
    ),
    "seam": Rule(
        figures=("health/border",), limit=2.0, back=1.7, above=True, late=True,
        what="a seam around the holes", detail="steps across their border {:.1f} times the photos' own",
        cure="raise --objective.adversarial-weight with --objective.discriminator-sees composite",
        again="no seam around the holes any more",
    ),
    "grid": Rule(
        figures=("health/checkerboard",), limit=3.0, back=2.5, above=True, late=True,
        what="a grid of 2 or 4 pixels in the holes", detail="{:.1f} times as strong as in the photos",
        cure="raise --objective.adversarial-weight, or lower --objective.perceptual-weight where it is set",
        again="no grid in the holes any more",
    ),
    "colour": Rule(
        figures=("health/colour_gap",), limit=0.1, back=0.08, above=True, late=True,
        what="holes of another colour than what is around them", detail="{:.2f} further than in the photos, of 2",
        cure="raise --objective.reconstruction-weight, or train for more --epochs",
        again="holes of the colour of what is around them again",
    ),
    "gradient g": _gradient("norm/g", "generator", "--lr", "--clip-grad"),
    "gradient d": _gradient("norm/d", "discriminator", "--lr-d", "--clip-grad-d"),
}  # fmt: skip

FIGURES = {figure: rule.jump for rule in RULES.values() for figure in rule.figures}
"""What is followed, and whether its jumps are meant."""


class Health:
    """Follows the figures of the reports. What it knows is plain values: saved and loaded, it says the same.

    Args:
        total_steps: the run's length. Nothing is said in its first tenth (at most 1,000 steps), of pictures nothing in
            its first fifth (at most 10,000).
    """

    def __init__(self, total_steps: int) -> None:
        self._early, self._late = min(1000, total_steps // 10), min(10_000, total_steps // 5)
        self._averages: dict[str, tuple[float, int]] = {}
        self._since: dict[str, int] = {}
        self._said: list[str] = []

    def report(self, step: int, values: Mapping[str, float | int]) -> list[str]:
        """Take the figures of a step, of which some may be absent or not finite; returns what is to be said of them."""
        levels = {figure: level for figure in FIGURES if (level := self._follow(figure, values)) is not None}
        said: list[str] = []
        for name, rule in RULES.items():
            if all(figure in levels for figure in rule.figures):
                said += self._judge(name, rule, [levels[figure] for figure in rule.figures], step)
        return said

    def _follow(self, figure: str, values: Mapping[str, float | int]) -> float | None:
        """Take a figure into its average; returns what its rules look at, None where there is nothing to look at."""
        value, jump = values.get(figure, math.nan), FIGURES[figure]
        if not math.isfinite(value) or (jump and value <= 0):
            return None
        value = math.log(value) if jump else float(value)  # one jump hardly moves an average of logarithms
        average, count = self._averages.get(figure, (value, 0))
        moved = average + (value - average) * max(SLOW_RATE if jump else RATE, 1 / (count + 1))
        self._averages[figure] = (moved, count + 1)
        return math.exp(min(value - average, 700.0)) if jump else moved

    def _judge(self, name: str, rule: Rule, levels: list[float], step: int) -> Iterator[str]:
        if rule.is_beyond(levels, rule.limit):
            since = self._since.setdefault(name, step)
            known = min(self._averages[figure][1] for figure in rule.figures)
            if name not in self._said and known >= FEWEST and step >= (self._late if rule.late else self._early):
                self._said.append(name)
                yield f"{rule.what} since step {since:,} ({rule.detail.format(*levels)}): {rule.cure}"
        elif name in self._since and not rule.is_beyond(levels, rule.back):
            del self._since[name]
            if name in self._said:
                self._said.remove(name)
                yield f"{rule.again} since step {step:,}"

    def state(self) -> dict[str, Any]:
        """What it knows, as JSON."""
        averages = {name: [average, count] for name, (average, count) in self._averages.items()}
        return {"averages": averages, "since": dict(self._since), "said": list(self._said)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self._averages = {name: (float(average), int(count)) for name, (average, count) in state["averages"].items()}
        self._since = {name: int(step) for name, step in state["since"].items()}
        self._said = list(state["said"])
