"""--fused_backward_pass: each weight is updated as soon as its gradient is known, and the gradient freed at once.

So the gradients of the whole model never exist together. Every parameter is clipped by itself, since the norm over all
gradients is not known; this is also what sd-scripts does.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.optimizer import OptimizerOptions
from sd_scripts.training.optimizers import CreatedOptimizer


def check_fused(
    options: OptimizerOptions, created: CreatedOptimizer, gradient_accumulation_steps: int, loss_scaling: bool
) -> None:
    """Raise UserError where fused_backward_pass cannot work; does nothing when it is off."""
    if not options.fused_backward_pass:
        return
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UserError(
            "fused_backward_pass works with one process only: a weight would change before its gradient was shared.",
            "fused_backward_pass",
        )
    if created.rules != "adafactor":
        raise UserError(
            f"fused_backward_pass works with the optimizer AdaFactor only, not with {created.name}.",
            "fused_backward_pass",
        )
    if gradient_accumulation_steps != 1:
        raise UserError(
            f"fused_backward_pass needs gradient_accumulation_steps 1, not {gradient_accumulation_steps}.",
            "fused_backward_pass",
        )
    if loss_scaling:
        raise UserError(
            "fused_backward_pass cannot undo the loss scaling of mixed_precision fp16.",
            "fused_backward_pass",
            "Use mixed_precision bf16.",
        )


class FusedBackward:
    """Hooks that step the optimizer for one parameter during backward.

    The trainer goes on calling `optimizer.step()` and the scheduler: with no gradients left, that step changes nothing.

    Args:
        optimizer: an optimizer whose parameters are independent of each other (Adafactor).
        max_grad_norm: limit for the norm of each parameter's gradient; 0 for none.
        ready: tells per call whether this backward pass is one to step on.

    Attributes: `broken` becomes True once a gradient was NaN or infinite; the weight it was for is left as it was.
    """

    def __init__(self, optimizer: Optimizer, max_grad_norm: float, ready: Callable[[], bool] = lambda: True) -> None:
        self._optimizer = optimizer
        self._limit = max_grad_norm
        self._ready = ready
        self.broken = False
        # The class's own step: a scheduler wraps the bound one to count calls, and these are not whole steps.
        self._step = type(optimizer).step
        self._handles = [
            param.register_post_accumulate_grad_hook(self._hook(position))
            for position, group in enumerate(optimizer.param_groups)
            for param in group["params"]
            if param.requires_grad
        ]

    def _hook(self, position: int) -> Callable[[Tensor], None]:
        def update(param: Tensor) -> None:
            if not self._ready():
                return
            if param.grad is not None and not bool(torch.isfinite(param.grad).all()):
                self.broken = True
                param.grad = None
                return
            if self._limit:
                torch.nn.utils.clip_grad_norm_([param], self._limit)
            groups = self._optimizer.param_groups
            self._optimizer.param_groups = [{**groups[position], "params": [param]}]
            try:
                self._step(self._optimizer)
            finally:
                self._optimizer.param_groups = groups
            param.grad = None

        return update

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
