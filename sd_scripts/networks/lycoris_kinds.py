"""LyCORIS' classes, each with what goes wrong in 4.1.3 mended by a mixin before it.

`classes` puts both together, since LyCORIS is loaded only when somebody asks for it.
"""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sd_scripts.networks.lora_module import stored_alpha
from sd_scripts.networks.lycoris_modules import Limited, Mended, balanced, dropped, kept_rows, no_dropout, wide

# What LyCORIS hands over by position, after the name and the layer: strength, rank, alpha, three dropouts, Tucker.
_POSITIONAL = 7


class LoCon(Limited):
    """LoRA for linear layers and convolutions."""

    strong = ("lora_up.weight",)

    def make_weight(self, device: Any = None) -> Tensor:
        """up x down, with our rank dropout."""
        with no_dropout(self):
            weight = cast(Any, super()).make_weight(device)
        return dropped(self, weight)

    def bypass_forward_diff(self, x: Tensor, scale: float = 1) -> Tensor:
        """What the network adds to the layer's output."""
        with balanced(self, scale) as strength:
            return cast(Tensor, cast(Any, super()).bypass_forward_diff(x, strength))

    def change(self) -> Tensor:
        """up x down, through the Tucker core where there is one."""
        return cast(Any, self).make_weight() * cast(Any, self).scale


class LoHa(Limited):
    """The elementwise product of two low-rank matrices."""

    strong = ("hada_w1_a",)

    def get_weight(self, shape: Any) -> Tensor:
        """The product, with our rank dropout."""
        with no_dropout(self):
            weight = cast(Any, super()).get_weight(shape)
        return dropped(self, weight)

    def change(self) -> Tensor:
        """The product, in the layer's shape."""
        return cast(Any, self).get_weight(cast(Any, self).shape) * cast(Any, self).scalar


class LoKr(Limited):
    """A Kronecker product."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.follow_alpha()
        if self.scale == 1:
            self.alpha.fill_(cast(Any, self).lora_dim)

    def get_weight(self, shape: Any) -> Tensor:
        """The product, with our rank dropout."""
        with no_dropout(self):
            weight = cast(Any, super()).get_weight(shape)
        return dropped(self, weight)

    @property
    def strong(self) -> tuple[str, ...]:  # type: ignore[override]
        """The smaller matrix, or one of its factors."""
        return ("lokr_w1" if cast(Any, self).use_w1 else "lokr_w1_a",)

    def change(self) -> Tensor:
        """The product, in the layer's shape."""
        return cast(Any, self).get_weight(cast(Any, self).shape) * cast(Any, self).scalar

    def follow_alpha(self) -> None:
        """Two whole matrices have no rank: nobody who reads the file could tell what to divide alpha by."""
        super().follow_alpha()
        if cast(Any, self).use_w1 and cast(Any, self).use_w2:
            self.scale = 1.0


class GLoRA(Limited):
    """W + W a + b."""

    strong = ("a2.weight", "b2.weight")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # With rs_lora LyCORIS leaves an alpha in the file from which its own scale does not follow.
        mine = cast(Any, self)
        self.alpha = torch.tensor(float(mine.scale * mine.lora_dim))
        if mine.bypass_mode and mine.rank_dropout:
            # There LyCORIS keeps the ranks that it should drop.
            mine.rank_dropout = 1 - mine.rank_dropout

    @property
    def chance(self) -> float:
        """How likely rank dropout leaves a rank out, where the weights are bypassed."""
        return 1 - super().chance

    def change(self) -> Tensor:
        """W a + b."""
        return cast(Any, self).make_weight()

    def make_weight(self, device: Any = None) -> Tensor:
        """The change, with rank dropout, which LyCORIS does only where the weights are bypassed."""
        return dropped(self, cast(Any, super()).make_weight(device))

    def _bypass_forward(self, x: Tensor, scale: float = 1, diff: bool = False) -> Tensor:
        with balanced(self, scale) as strength:
            return cast(Tensor, cast(Any, super())._bypass_forward(x, strength, diff))


class DyLoRA(Limited):
    """LoRA whose ranks are trained block by block.

    Which block is trained is drawn before a batch, so that recomputed activations are the same; samples and validation
    see all of them. The file holds plain LoRA of the effect that was trained: LyCORIS divides alpha by the number of
    blocks, everybody who reads the file by the rank.
    """

    plus = ("up_list",)
    drawn: int | None = None

    @property
    def strong(self) -> tuple[str, ...]:  # type: ignore[override]
        """All blocks of the up matrix."""
        return tuple(f"up_list.{number}" for number in range(cast(Any, self).block_count))

    def change(self) -> Tensor:
        """With all blocks."""
        rank = (cast(Any, self).block_count - 1) * cast(Any, self).block_size
        return cast(Any, self).get_diff_weight(rank=rank)[0]

    def start_step(self) -> None:
        """Draw the block that this batch trains."""
        self.drawn = random.randrange(cast(Any, self).block_count)

    def get_random_rank_weight(self) -> Any:
        """The down and up matrix up to the block of this batch, and the strength."""
        mine = cast(Any, self)
        block = self.drawn if self.training and self.drawn is not None else mine.block_count - 1
        return mine.get_weight(block * mine.block_size)

    def custom_state_dict(self) -> dict[str, Tensor] | None:
        """Plain LoRA for a file."""
        made = super().custom_state_dict()
        if made is None:
            return None
        kernel = [1] * (len(cast(Any, self).shape) - 2)
        made["alpha"] = self.alpha * cast(Any, self).block_size
        made["lora_up.weight"] = made["lora_up.weight"].reshape(*made["lora_up.weight"].shape, *kernel)
        return made

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module does; LyCORIS' own does nothing."""
        return nn.Module.load_state_dict(self, state_dict, strict, assign)

    def load_weight_prehook(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Cut plain LoRA into blocks."""
        for name, axis in (("up", 1), ("down", 0)):
            whole = state_dict.pop(f"{prefix}lora_{name}.weight", None)
            if whole is None:
                continue
            for number, block in enumerate(whole.flatten(1).split(cast(Any, self).block_size, dim=axis)):
                state_dict[f"{prefix}{name}_list.{number}"] = block
            if name == "up" and f"{prefix}alpha" in state_dict:
                alpha = stored_alpha(state_dict[f"{prefix}alpha"], whole.shape[1])
                state_dict[f"{prefix}alpha"] = torch.tensor(alpha / cast(Any, self).block_size)

    def follow_alpha(self) -> None:
        """DyLoRA reads its alpha every time."""


class Full(Mended):
    """Native fine-tuning: the layer's weight itself is trained, and the difference is written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # LyCORIS takes the type of the layer, where small differences would be rounded away.
        for parameter in self.parameters():
            parameter.data = wide(parameter.data)

    @property
    def org_weight(self) -> Tensor:
        """The weight before training."""
        return cast(Tensor, cast(Any, self)._org_weight[0])

    @org_weight.setter
    def org_weight(self, value: Tensor) -> None:
        cast(Any, self).org_module[0].weight.data.copy_(value)

    def make_weight(self, scale: float = 1, device: Any = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, with our rank dropout: rows of their differences."""
        mine = cast(Any, self)
        kept = kept_rows(self, mine.dim, mine.weight)
        if not isinstance(kept, Tensor):
            return cast(tuple[Tensor, Tensor | None], cast(Any, super()).make_weight(scale, device))
        change, change_of_bias = mine.get_diff_weight(scale, device=device)
        weight = mine.org_weight.to(change) + change * kept.view(-1, *[1] * (change.dim() - 1))
        if change_of_bias is None:
            return weight, None
        return weight, mine.org_bias[0].to(change_of_bias) + change_of_bias * kept

    def load_weight_prehook(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Add a file's differences to what the layer was before training, however often one is loaded."""
        mine = cast(Any, self)
        for name, own, before in (("diff", "weight", mine._org_weight), ("diff_b", "bias", mine.org_bias)):
            change = state_dict.pop(prefix + name, None)
            if change is not None:
                base = 0 if mine.is_diff or before is None else before[0].to(change)
                state_dict[prefix + own] = change + base

    def custom_state_dict(self) -> dict[str, Tensor] | None:
        """The differences for a file, also before the module is in its place."""
        mine = cast(Any, self)
        if not self.folded or not mine.is_diff:
            return super().custom_state_dict()
        return {"diff": mine.weight} | ({} if mine.bias is None else {"diff_b": mine.bias})


class IA3(Mended):
    """Factors for the inputs or the outputs of a layer."""

    def follow_alpha(self) -> None:
        """A file says which of the two it scales."""
        mine = cast(Any, self)
        mine.train_input = bool(mine.on_input)


class TLoRA(Mended):
    """LoRA that starts from the layer's own singular vectors; of convolutions only those of 1x1."""

    def __init__(self, lora_name: str, org_module: Any, *settings: Any, use_tucker: bool = False, **words: Any) -> None:
        if any(size != 1 for size in getattr(org_module, "kernel_size", ())):
            raise ValueError("tlora cannot train convolutions larger than 1x1; leave them out by the preset")
        # LyCORIS hands the Tucker switch to every class at the place where this one has another setting.
        super().__init__(lora_name, org_module, *settings[: _POSITIONAL - 1], **words)


class Turned(Mended):
    """Diag-OFT and BOFT: orthogonal matrices lie so near to 1 that they must not be made in 16 bits."""

    def make_weight(self, scale: float = 1, device: Any = None, diff: bool = False) -> Tensor:
        """The turned weight, whatever autocast says."""
        with torch.autocast((device or self.alpha.device).type, enabled=False):
            return cast(Any, super()).make_weight(scale, device, diff)

    def follow_alpha(self) -> None:
        """The limit stands where others have their alpha."""
        mine = cast(Any, self)
        mine.constraint = float(self.alpha) * mine.dim


class Norm(Mended):
    """A normalisation layer."""

    def make_weight(self, scale: float = 1, device: Any = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with their differences; LyCORIS' dropout keeps what it should drop."""
        mine = cast(Any, self)
        layer = mine.org_module[0]
        kept = kept_rows(mine, mine.dim, mine.w_norm)
        weight = wide(layer.weight) + mine.w_norm * kept * scale
        bias = None if layer.bias is None else wide(layer.bias) + mine.b_norm * kept * scale
        return weight, bias


_MIXINS: Mapping[str, type[Mended]] = {
    "LoConModule": LoCon,
    "LohaModule": LoHa,
    "LokrModule": LoKr,
    "GLoRAModule": GLoRA,
    "DyLoraModule": DyLoRA,
    "FullModule": Full,
    "DiagOFTModule": Turned,
    "ButterflyOFTModule": Turned,
    "NormModule": Norm,
    "IA3Module": IA3,
    "TLoraModule": TLoRA,
}


@functools.cache
def classes() -> dict[str, type[Mended]]:
    """LyCORIS' classes by name, each behind its mixin."""
    modules = importlib.import_module("lycoris.modules")
    return {name: type(name, (mixin, getattr(modules, name)), {}) for name, mixin in _MIXINS.items()}
