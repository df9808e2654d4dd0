import math

import pytest

from inpaint_dist.tracking.log_line import log_line

EVERYTHING = {
    "g/loss": 0.4123,
    "g/reconstruction": 0.2001,
    "g/adversarial": 0.2122,
    "d/loss": 0.23812,
    "d/real": 0.711,
    "d/fake": 0.299,
    "d/accuracy_real": 0.971,
    "d/accuracy_fake": 0.99,
    "grad/reconstruction": 0.003,
    "grad/adversarial": 0.000001,
    "norm/g": 0.23,
    "norm/d": 0.035,
    "health/colour_gap": 0.0213,
    "health/border": 1.21,
    "health/sharpness": 0.312,
    "health/checkerboard": 0.98,
    "images_per_second": 412.4,
    "data_wait": 0.021,
    "memory_gib": 7.13,
    "eta_seconds": 5040.0,
}


def test_the_line_of_a_full_report_is_the_documented_one():
    assert log_line(1200, 35000, EVERYTHING) == (
        "step 1200/35000 3.4% | G 0.412 (adv 0.21 rec 0.20) D 0.238 | real 0.71 fake 0.30 "
        "| D acc 0.97/0.99 | norm g 0.23 d 0.035 | pull adv 1.0e-06 rec 0.0030 "
        "| health sharp 0.31 seam 1.2 grid 0.98 colour 0.021 | 412 img/s | data 2% | mem 7.1G | eta 1h24m"
    )


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "step 5/10 50.0%"),
        ({"g/loss": 1}, "step 5/10 50.0% | G 1.00"),
        ({"d/loss": 0.5, "d/r1": 0.01}, "step 5/10 50.0% | D 0.500 (r1 0.010)"),
        ({"d/fake": 0.5}, "step 5/10 50.0% | fake 0.50"),
        ({"g/loss": math.nan, "g/adversarial": math.inf}, "step 5/10 50.0% | G nan (adv inf)"),
        (
            {"g/loss": 123456.7, "g/hue": 2, "g/perceptual": 0.5, "g/reconstruction": 123400.0},
            "step 5/10 50.0% | G 123457 (rec 123400 perc 0.50 hue 2.0)",
        ),
        (
            {"grad/reconstruction": 21.7, "grad/adversarial": 0.000031},
            "step 5/10 50.0% | pull adv 3.1e-05 rec 22",
        ),
        ({"norm/d": 12.3}, "step 5/10 50.0% | norm d 12"),
        ({"val/psnr": 26.512, "val/l1": 0.01234}, "step 5/10 50.0% | val psnr 26.5 l1 0.0123"),
        ({"images_per_second": 3.21, "data_wait": 0.0}, "step 5/10 50.0% | 3.2 img/s | data 0%"),
    ],
)
def test_what_is_absent_is_left_out_and_what_is_there_is_said(values, line):
    assert log_line(5, 10, values) == line
