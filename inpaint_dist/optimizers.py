"""What is common to both optimisers: how they are made, their rates, and their state as named tensors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def schedule(kind: str, step: int, total: int) -> float:
    """Factor of the learning rate at a step counted from 0, of `total`."""
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * step / total))
    left = min(1.0, (total - step) / max(1.0, total / 5))  # of the last fifth
    if kind == "tail":
        return left
    return 0.5 * (1.0 - math.cos(math.pi * left)) if kind == "cosine-tail" else 1.0


def adam(parameters: list[Tensor], rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """A fused Adam that skips its update where its `found_inf` is 1, without the host's waiting to know.

    On a GPU it may be recorded as part of a CUDA graph, and its rate is a tensor.
    """
    device = parameters[0].device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(
        parameters,
        lr=torch.tensor(rate, device=device) if on_gpu else rate,
        betas=betas,
        fused=True,
        capturable=on_gpu,
    )
    optimizer._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]
    # Its moments are made by the first step: here one that is skipped, so that the first real one can be undone.
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.found_inf = torch.ones((), device=device)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give an optimiser its learning rate, in place where that is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: "PARAMETER.NAME". Rates and decays are the config's."""
    state: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": tensor for number, entry in state.items() for name, tensor in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state that `optimizer_tensors` made of it."""
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        if tensor.ndim:  # the fused update walks parameter and moments side by side in memory: their layout must agree
            tensor = torch.empty_like(parameters[int(number)]).copy_(tensor)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
