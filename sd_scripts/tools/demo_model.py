"""The demo's base model: small, made here in seconds, and able to show something.

Its VAE is built by hand: latents are the picture at an eighth of its size, and decoding enlarges them smoothly. Its
U-Net starts from a good guess at the noise, so that a short training has something to improve on.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

from sd_scripts.models.assets import model_config
from sd_scripts.models.build import LoadedModel, make_vae
from sd_scripts.models.tiny import build_tiny

VAE_WIDTHS = [64, 96, 128, 128]
_GAIN = 10.0  # latents per pixel value, so that scaled latents spread like those of the full-size model
_LIFT = 10.0  # where SiLU is a straight line
_SMALL = 1e-5  # far below the norm's epsilon, so that normalising only multiplies by a constant
_BLUR = torch.tensor([1.0, 2.0, 1.0])


def build_demo_model(seed: int = 0) -> LoadedModel:
    """The demo's base model; its weights depend on `seed` only."""
    model = build_tiny("sd1", seed)
    model.vae = thumbnail_vae()
    guess_noise_at_first(model.unet)
    return model


def thumbnail_vae() -> AutoencoderKL:
    """A VAE of Stable Diffusion's topology whose weights shrink and enlarge pictures.

    Residual and attention branches add nothing. The only layers that cannot be switched off are the last norm and
    SiLU of each half: the signal crosses them scaled far down, as a pair of opposite values whose mean is zero, and
    lifted to where SiLU is straight.
    """
    vae = make_vae(model_config("sd1")["vae"] | {"block_out_channels": VAE_WIDTHS, "sample_size": 128})
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        _shrink(vae.encoder, vae.quant_conv)
        _enlarge(vae.decoder, vae.post_quant_conv)
    return vae.eval()


def _centre(conv: nn.Conv2d, pairs: dict[tuple[int, int], float]) -> None:
    """Set the middle tap of the given (to, from) channels."""
    middle = conv.kernel_size[0] // 2
    for (to, source), value in pairs.items():
        conv.weight[to, source, middle, middle] = value


def _pairs(groups_of: int) -> dict[tuple[int, int], float]:
    """Three channels as opposite pairs, each pair in a norm group of its own."""
    return {(c * groups_of + side, c): sign * _SMALL for c in range(3) for side, sign in ((0, 1.0), (1, -1.0))}


def _cross_norm(norm: nn.GroupNorm, out: nn.Conv2d, taps: dict[tuple[int, int], float]) -> None:
    """Undo the small scale after the norm, lift, and take the lift away in the last convolution."""
    norm.weight.fill_(norm.eps**0.5 / _SMALL)
    norm.bias.fill_(_LIFT)
    _centre(out, taps)
    for (to, _), value in taps.items():
        out.bias[to] -= value * _LIFT


def _shrink(encoder: nn.Module, quant: nn.Conv2d) -> None:
    _centre(encoder.conv_in, {(c, c): 1.0 for c in range(3)})
    _centre(encoder.down_blocks[1].resnets[0].conv_shortcut, {(c, c): 1.0 for c in range(3)})
    _centre(encoder.down_blocks[2].resnets[0].conv_shortcut, _pairs(4))
    for block in encoder.down_blocks[:3]:
        conv = block.downsamplers[0].conv
        for channel in range(12):
            conv.weight[channel, channel, :2, :2] = 0.25
    taps = {(c, c * 4): _GAIN for c in range(3)} | {(3, c * 4): _GAIN / 3 for c in range(3)}
    _cross_norm(encoder.conv_norm_out, encoder.conv_out, taps)
    _centre(quant, {(c, c): 1.0 for c in range(4)})
    quant.bias[4:] = -20.0  # next to no spread around the mean


def _enlarge(decoder: nn.Module, post_quant: nn.Conv2d) -> None:
    _centre(post_quant, {(c, c): 1.0 for c in range(4)})
    _centre(decoder.conv_in, {(c, c): 1.0 / _GAIN for c in range(3)})
    for block in decoder.up_blocks[:3]:
        conv = block.upsamplers[0].conv
        for channel in range(3):
            conv.weight[channel, channel] = torch.outer(_BLUR, _BLUR) / 16
    _centre(decoder.up_blocks[2].resnets[0].conv_shortcut, {(c, c): 1.0 for c in range(3)})
    _centre(decoder.up_blocks[3].resnets[0].conv_shortcut, _pairs(2))
    _cross_norm(decoder.conv_norm_out, decoder.conv_out, {(c, c * 2): 1.0 for c in range(3)})


def guess_noise_at_first(unet: nn.Module) -> None:
    """Start the U-Net from "the noise is what you see": the latents go round the whole network to its output.

    That is right for late timesteps and about half right on the whole. A value and its
    opposite cross the last SiLU side by side; their difference is the value again.
    """
    last = unet.up_blocks[-1].resnets[-1]
    around = last.conv_shortcut.in_channels - unet.conv_in.out_channels
    with torch.no_grad():
        for channel in range(4):
            for row, sign in ((channel, 1.0), (channel + 4, -1.0)):
                unet.conv_in.weight[row] = 0
                unet.conv_in.weight[row, channel, 1, 1] = sign
                last.conv2.weight[row] = 0
                last.conv_shortcut.weight[row] = 0
                last.conv_shortcut.weight[row, around + row] = 1
                for conv in (unet.conv_in, last.conv2, last.conv_shortcut):
                    conv.bias[row] = 0
        unet.conv_out.weight.mul_(0.1)
        for channel in range(4):
            unet.conv_out.weight[channel, :8] = 0
            unet.conv_out.weight[channel, channel, 1, 1] = 1
            unet.conv_out.weight[channel, channel + 4, 1, 1] = -1
