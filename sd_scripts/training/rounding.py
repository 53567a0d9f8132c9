"""Stochastic rounding for weights kept in bf16: an update too small for the next number is taken now and then.

Round to nearest loses every update below half a step between two bf16 numbers (a relative 2^-9), so that at usual
learning rates most weights never move. Rounding up with the probability of the rest keeps the mean exact (Gupta et
al., "Deep Learning with Limited Numerical Precision", 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COUNT = "rounded_steps"


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> bfloat16 of the same shape, each value to one of its two neighbours with its own mean.

    Args:
        values: finite float32 numbers.
        generator: on the device of `values`; draws one 16-bit number a value.
    """
    bits = values.contiguous().view(torch.int32)
    # bf16 is the upper half of a float32: adding a random lower half carries over with the right probability.
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=values.device, generator=generator)
    return ((bits + noise) & -65536).view(torch.float32).to(torch.bfloat16)


class _RoundsStochastically:
    """Mixed into an optimizer's class: every parameter is stepped in float32 by itself, then rounded.

    Only one parameter at a time has a float32 copy. The draws follow from the number of steps done and the place of
    the parameter, so that all processes round alike and a resumed run goes on exactly.
    """

    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient. Raises ValueError for a closure."""
        if closure is not None:
            raise ValueError("an optimizer with stochastic rounding takes no closure")
        groups = self.param_groups
        try:
            for group in groups:
                for param in [param for param in group["params"] if param.grad is not None]:
                    self.param_groups = [{**group, "params": [param]}]
                    self._step_one(param)
                    group.update({key: value for key, value in self.param_groups[0].items() if key != "params"})
        finally:
            self.param_groups = groups

    def _step_one(self, param: Tensor) -> None:
        step = super().step  # type: ignore[misc]
        if param.dtype != torch.bfloat16:
            step()
            return
        gradient = param.grad
        done = self.state[param].get(_COUNT, 0)
        place = self.places()[id(param)]  # type: ignore[attr-defined]
        with torch.no_grad():
            low, param.grad = param.data, None
            param.data = low.float()
            param.grad = None if gradient is None else gradient.float()
            try:
                step()
                generator = torch.Generator(low.device).manual_seed((done << 24) + place)
                low.copy_(round_stochastically(param.data, generator))
            finally:
                param.grad = None
                param.data = low
                param.grad = gradient
        # Counted with the parameter's own state, after it exists: optimizers fill it in when they find it empty.
        self.state[param][_COUNT] = done + 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; its float32 moments stay float32, where torch would cast them to the weights' type."""
        params = [param for group in self.param_groups for param in group["params"] if param.dtype == torch.bfloat16]
        low = [param.data for param in params]
        try:
            for param in params:
                param.data = param.data.float()
            super().load_state_dict(state_dict)  # type: ignore[misc]
        finally:
            for param, value in zip(params, low, strict=True):
                param.data = value


def use_stochastic_rounding(optimizer: Optimizer) -> None:
    """Let this optimizer round its bf16 parameters stochastically from now on; other parameters are stepped as before.

    Its moments are float32, as for float32 weights, unless the optimizer keeps them smaller itself.
    """
    numbers = {id(param): number for number, param in enumerate(_parameters(optimizer))}
    mixed = type(
        f"StochasticallyRounding{type(optimizer).__name__}",
        (_RoundsStochastically, type(optimizer)),
        {"places": lambda self: numbers},
    )
    optimizer.__class__ = mixed


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]
