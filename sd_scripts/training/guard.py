"""Telling an ordinary overflow of scaled fp16 gradients from training that has broken down."""

import math

# The scale starts at 65536 and halves at each overflow: after 40 in a row it is far below 1 and no overflow of ours.
PATIENCE = 40


class OverflowWatch:
    """Counts optimizer steps in a row whose gradients were not finite.

    With a loss scaler such a step is skipped and the scale halved, which is normal now and then. Without one it is
    never normal.

    Args:
        scaled: a loss scaler is in use.
    """

    def __init__(self, scaled: bool) -> None:
        self._scaled = scaled
        self._bad = 0

    def broken(self, grad_norm: float) -> bool:
        """Note one step's gradient norm; True when training cannot go on."""
        if math.isfinite(grad_norm):
            self._bad = 0
            return False
        self._bad += 1
        return not self._scaled or self._bad > PATIENCE
