"""What is common to both optimisers: the schedule of their rates, and their state as named tensors."""

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
