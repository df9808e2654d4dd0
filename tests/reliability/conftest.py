"""What tests of whole runs may leave out."""

import pytest

from inpaint_dist.tracking import plots


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and pictures take most of the time of a run of a few steps."""
    for name in ("draw_losses", "draw_grid"):
        monkeypatch.setattr(plots, name, lambda *_, **__: None)
