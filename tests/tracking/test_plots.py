import math

import cv2
import numpy as np
import pytest

from inpaint_dist.tracking import plots


def fake_run(count, every=1):
    for i in range(1, count + 1):
        fall = 1 / (1 + 20 * i / count)
        yield {
            "step": i * every,
            "g/loss": fall + 0.01 * (i % 7),
            "d/loss": 0.2 + 0.01 * (i % 5),
            "d/real": 0.7,
            "d/fake": 0.3,
        }


def curve(values, steps=None):
    values = np.asarray(values, dtype=np.float64)
    steps = np.arange(len(values)) if steps is None else steps
    return plots.Curve(steps=np.asarray(steps, dtype=np.int64), values=values)


@pytest.fixture
def lengths(monkeypatch):
    """How many points each call of an axes' plot was given."""
    from matplotlib.axes import Axes

    seen, plot = [], Axes.plot

    def count(self, x, y, *rest, **named):
        seen.append(len(x))
        return plot(self, x, y, *rest, **named)

    monkeypatch.setattr(Axes, "plot", count)
    return seen


def test_two_million_points_are_thinned_before_they_are_drawn(tmp_path, lengths):
    plots.draw_losses(fake_run(2_000_000), tmp_path / "losses.png")
    assert len(lengths) == 8  # raw and smoothed of G, D, D(real), D(fake)
    assert 0 < max(lengths) <= plots.POINTS
    assert cv2.imread(str(tmp_path / "losses.png")) is not None


def test_a_short_history_is_drawn_in_every_point(tmp_path, lengths):
    plots.draw_losses(fake_run(31, every=10), tmp_path / "losses.png")
    assert lengths == [31] * 8


def test_thinning_keeps_every_lone_spike_the_ends_and_the_order():
    values = np.zeros(123_457)
    spikes = np.arange(1000, len(values), 5_003)
    values[spikes] = np.where(np.arange(len(spikes)) % 2, 9.0, -9.0)
    thin = curve(values).thinned()
    assert len(thin.steps) <= plots.POINTS
    assert set(spikes) <= set(thin.steps.tolist())
    assert (thin.steps[0], thin.steps[-1]) == (0, len(values) - 1)
    assert (np.diff(thin.steps) > 0).all()
    np.testing.assert_array_equal(thin.values, values[thin.steps])


@pytest.mark.parametrize("count", [1, 2, 1999, 2000, 2001, 2002, 3996, 50_000])
def test_any_length_can_be_thinned_and_smoothed(count):
    series = curve(np.linspace(5, 1, count))
    for drawn in (series.thinned(), series.smoothed()):
        assert 1 <= len(drawn.steps) <= plots.POINTS
        assert drawn.steps[-1] == count - 1


def test_smoothing_starts_at_the_data_keeps_a_constant_and_calms_noise():
    assert curve([3.0, 9.0, 9.0]).smoothed().values[0] == 3.0
    np.testing.assert_allclose(curve(np.full(5000, 0.7)).smoothed().values, 0.7)
    noise = curve([(-1.0) ** i for i in range(1000)])
    assert np.abs(noise.smoothed().values[100:]).max() < 0.05


def test_what_is_null_or_not_finite_is_left_out():
    history = [
        {"step": 1, "g/loss": 1.0},
        {"step": 2, "g/loss": None},
        {"step": 3, "g/loss": math.nan},
        {"step": 4, "other": 1.0},
        {"step": 5, "g/loss": 2.0},
    ]
    found = plots.curves(history, lambda name: name == "g/loss")
    assert list(found) == ["g/loss"]
    assert found["g/loss"].steps.tolist() == [1, 5]


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 10, "g/loss": 1.0, "d/loss": 0.0}],
        [{"step": 1, "g/loss": None, "d/loss": None}],
        [{"step": i, "g/loss": 10.0 ** (6 - i), "d/loss": -1.0, "d/real": 3.0, "val/psnr": 20.0} for i in range(9)],
        [{"step": i, "val/psnr": 20.0 + i, "val/psnr_hole": 15.0} for i in range(3)],
    ],
    ids=["empty", "one point", "only nulls", "six decades", "validation alone"],
)
def test_every_odd_history_gives_a_picture(history, tmp_path):
    plots.draw_losses(history, tmp_path / "plots" / "losses.png", title="run")
    assert cv2.imread(str(tmp_path / "plots" / "losses.png")).std() > 1


def test_a_plot_is_whole_or_absent(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "losses.png"

    def half(self, target, **named):
        target.write_bytes(b"\x89PNG half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", half)
        with pytest.raises(OSError, match="disk full"):
            plots.draw_losses(fake_run(5), path)
        assert list(tmp_path.iterdir()) == []
    plots.draw_losses(fake_run(5), path)
    before = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        plots.draw_losses(fake_run(6), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_leaves_no_trace_in_matplotlib_s_global_state(tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    plots.draw_losses(fake_run(5), tmp_path / "losses.png")
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_a_grid_holds_every_image_unchanged_in_its_row_and_column(tmp_path):
    rng = np.random.RandomState(0)
    columns = [(name, rng.randint(0, 256, (3, 40, 48, 3)).astype(np.uint8)) for name in ("photo", "masked", "filled")]
    plots.draw_grid(tmp_path / "samples" / "grid.png", columns)
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "samples" / "grid.png")), cv2.COLOR_BGR2RGB)
    gap, band = 2, 16
    for c, (_, images) in enumerate(columns):
        for r, image in enumerate(images):
            top, left = band + r * (40 + gap), gap + c * (48 + gap)
            np.testing.assert_array_equal(sheet[top : top + 40, left : left + 48], image)
        title = sheet[:band, gap + c * (48 + gap) :][:, :48]
        assert title.min() < 150  # something dark stands in the band
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    "columns",
    [
        [],
        [("a", np.zeros((0, 8, 8, 3), np.uint8))],
        [("a", np.zeros((2, 8, 8), np.uint8))],
        [("a", np.zeros((2, 8, 8, 3), np.float32))],
        [("a", np.zeros((2, 8, 8, 3), np.uint8)), ("b", np.zeros((1, 8, 8, 3), np.uint8))],
    ],
    ids=["no columns", "no images", "grey", "float", "unequal"],
)
def test_a_grid_of_wrong_images_is_refused_and_leaves_nothing(columns, tmp_path):
    with pytest.raises(ValueError, match="a grid wants"):
        plots.draw_grid(tmp_path / "grid.png", columns)
    assert list(tmp_path.iterdir()) == []
