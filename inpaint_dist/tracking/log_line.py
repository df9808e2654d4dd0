"""The line that a run prints at every report."""

import math
from collections.abc import Mapping

from inpaint_dist.duration import duration

SHORT = {"adversarial": "adv", "reconstruction": "rec", "perceptual": "perc", "feature_matching": "fm"}
"""Terms that every reader knows, in the order in which they are printed; others follow under their own names."""
HEALTH = {"sharpness": "sharp", "border": "seam", "checkerboard": "grid", "colour_gap": "colour"}
"""The pictures' figures, in the order in which they are printed."""


def log_line(step: int, total_steps: int, values: Mapping[str, float | int]) -> str:
    """Say in one line how the run does.

    Args:
        step: steps done, of `total_steps`.
        total_steps: the run's length.
        values: what is known at this step; what is absent is left out of the line. `g/loss` and `d/loss` with their
            terms `g/NAME` and `d/NAME`; `d/real` and `d/fake`, the discriminator's mean scores;
            `d/accuracy_real` and `d/accuracy_fake`, shares that it is right on; `norm/g` and `norm/d`, norms of the
            whole networks' gradients; `grad/NAME`, how hard each term pulls: the norm of its gradient at the
            generator's output; `health/NAME`, figures of the completions; `images_per_second`; `data_wait`, a share in
            0..1; `data/bad_samples`; `memory_gib`; `eta_seconds`; `val/NAME`, metrics on the validation split.
    """
    share = f" {100 * step / total_steps:.1f}%" if total_steps > 0 else ""
    losses = " ".join(part for part in (_loss("G", "g/", values), _loss("D", "d/", values)) if part)
    scores = " ".join(f"{name} {_number(values[f'd/{name}'], 2)}" for name in ("real", "fake") if f"d/{name}" in values)
    parts = [
        f"step {step}/{total_steps}{share}",
        losses,
        scores,
        _accuracy(values),
        _named("norm", _terms("norm/", values), 2),
        _named("pull", _terms("grad/", values), 2),
        _named("health", {HEALTH[name]: values[f"health/{name}"] for name in HEALTH if f"health/{name}" in values}, 2),
        _named("val", _terms("val/", values), 3),
        f"{_number(values['images_per_second'], 2)} img/s" if "images_per_second" in values else "",
        f"data {values['data_wait']:.0%}" if "data_wait" in values else "",
        f"bad {values['data/bad_samples']:.0f}" if values.get("data/bad_samples") else "",
        f"mem {values['memory_gib']:.1f}G" if "memory_gib" in values else "",
        f"eta {duration(values['eta_seconds'])}" if "eta_seconds" in values else "",
    ]
    return " | ".join(part for part in parts if part)


def _loss(letter: str, prefix: str, values: Mapping[str, float | int]) -> str:
    if f"{prefix}loss" not in values:
        return ""
    terms = _terms(prefix, values, without=("loss", "real", "fake", "accuracy_real", "accuracy_fake"))
    inside = " ".join(f"{name} {_number(value, 2)}" for name, value in terms.items())
    return f"{letter} {_number(values[f'{prefix}loss'], 3)}" + (f" ({inside})" if inside else "")


def _accuracy(values: Mapping[str, float | int]) -> str:
    names = ("d/accuracy_real", "d/accuracy_fake")
    return "D acc " + "/".join(f"{values[name]:.2f}" for name in names) if all(n in values for n in names) else ""


def _terms(prefix: str, values: Mapping[str, float | int], without: tuple[str, ...] = ()) -> dict[str, float | int]:
    """The values under a prefix by their short names: the known ones first, in the order of `SHORT`."""
    names = [key.removeprefix(prefix) for key in values if key.startswith(prefix)]
    known = [name for name in SHORT if name in names]
    return {
        SHORT.get(name, name): values[prefix + name]
        for name in known + [name for name in names if name not in SHORT]
        if name not in without
    }


def _named(title: str, terms: Mapping[str, float | int], digits: int) -> str:
    return " ".join([title, *(f"{name} {_number(value, digits)}" for name, value in terms.items())]) if terms else ""


def _number(value: float | int, digits: int) -> str:
    """A number with that many significant digits: plain from 0.0001 to 999999, else with an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent <= 5:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - exponent)}f}"
