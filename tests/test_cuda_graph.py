"""What the recorder of steps does where it cannot record; tests/test_gpu.py has the rest, on a GPU."""

import pytest
import torch

from inpaint_dist import cuda_graph
from inpaint_dist.batch import Batch
from inpaint_dist.cuda_graph import EAGER, Recorder

LITTLE, ENOUGH = 2.1, 2.3  # GiB, for a step that takes one, twice, and a tenth


@pytest.mark.parametrize("free", [LITTLE, ENOUGH])
def test_what_cannot_be_recorded_goes_on_as_it_is_written(free: float, monkeypatch: pytest.MonkeyPatch):
    ended: list[tuple[object, ...]] = []
    for name in ("reset_peak_memory_stats", "empty_cache", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1 << 29)
    peaks = iter([2 << 29, 3 << 29] + [2 << 29] * 99)  # the largest counts
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * 2**30), 80 << 30))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: torch.Stream("cpu"))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *given: ended.append(given), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *given: ended.append(given), raising=False)

    def refuse(*_: object) -> None:
        raise RuntimeError("it waits\nfor the host")

    monkeypatch.setattr(cuda_graph, "_Recording", refuse)
    done, cleaned = list[bool](), list[bool]()

    def work(batch: Batch, *, measure: bool) -> dict[str, torch.Tensor]:
        done.append(measure)
        return {}

    recorder = Recorder(work, lambda: cleaned.append(True))
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    for _ in range(EAGER):
        recorder(batch, measure=False)
    said = "it takes 2.0 GiB more, and 2.1 are free" if free == LITTLE else "slower for it: it waits$"
    with pytest.warns(RuntimeWarning, match=said):
        recorder(batch, measure=False)
    assert cleaned == [True] * (free == ENOUGH)
    assert [pool for _, pool in ended] == [(0, 1)] * 2 * (free == ENOUGH)
    for _ in range(EAGER + 1):
        recorder(batch, measure=True)
    assert done == [False] * (EAGER + 1) + [True] * (EAGER + 1)
