"""Start weights for a CLIPSeg that is trained from nothing."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

REST = 0.3  # of the usual random weights, beside those that interpolate


def new_network(config: CLIPSegConfig) -> CLIPSegForImageSegmentation:
    """Build a CLIPSeg with random weights under which it can learn.

    Hugging Face draws the decoder's weights with a standard deviation of 1: the logits start near ±500 and
    training collapses to empty masks. Here the decoder has PyTorch's own start weights, FiLM starts near the
    identity but listens to the condition, the last bias says "mostly background", and the vision encoder is
    drawn with 0.02; the logits are of order 1. An upsampling of several steps starts smooth. The text encoder
    keeps CLIP's own start weights: with smaller ones all prompts begin as nearly the same vector, and the decoder
    learns to ignore them.
    """
    network = CLIPSegForImageSegmentation(config)
    with torch.no_grad():
        for weight in network.clip.vision_model.parameters():
            if weight.ndim >= 2:
                nn.init.trunc_normal_(weight, std=0.02)
        for module in network.decoder.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.reset_parameters()
        for film in (network.decoder.film_mul, network.decoder.film_add):
            nn.init.normal_(film.weight, std=0.5 * config.projection_dim**-0.5)
        nn.init.ones_(network.decoder.film_mul.bias)
        nn.init.constant_(_last_convolution(network).bias, -1.5)
        if network.config.use_complex_transposed_convolution:
            mix, _, spread, *_ = network.decoder.transposed_convolution
            _interpolate(mix, spread)
    return network


def _interpolate(mix: nn.Conv2d, spread: nn.ConvTranspose2d) -> None:
    """Let the upsampling start near bilinear interpolation between patches.

    `spread` gives each patch a square of its own, without overlap, so answers begin as blocks of a patch's size.
    But the 3 × 3 convolution before it sees the neighbours: it can say what lies at each of the finer places in a
    patch, and `spread` put that there. With this start, validation Dice on seven sets after 120 steps was 0.56, not
    0.48.
    """
    fine = spread.stride[0]
    pairs = mix.out_channels // fine**2 // 2  # of mixtures of the channels, each at all finer places
    if not pairs:
        return
    neighbours = torch.eye(9).view(9, 1, 3, 3)
    weights = F.interpolate(neighbours, scale_factor=fine, mode="bilinear")[:, 0, fine : 2 * fine, fine : 2 * fine]
    mixtures = 1.4 * torch.randn(pairs, mix.in_channels) / mix.in_channels**0.5
    mixtures = torch.cat([mixtures, -mixtures])  # what follows lets only one of the two through
    start = torch.einsum("gc,nyx->gyxcn", mixtures, weights).reshape(-1, mix.in_channels, 3, 3)
    places = torch.eye(fine**2).view(fine, fine, fine, fine)
    answers = torch.randn(2 * pairs, spread.out_channels) / pairs**0.5
    spread_start = torch.einsum("go,yxvu->gyxovu", answers, places).reshape(-1, spread.out_channels, fine, fine)
    for layer, weight in ((mix, start), (spread, spread_start)):
        layer.weight.mul_(REST)
        layer.weight[: len(weight)] += weight
        layer.bias.zero_()


def _last_convolution(network: CLIPSegForImageSegmentation) -> nn.ConvTranspose2d:
    upsampling = network.decoder.transposed_convolution
    return upsampling[-1] if isinstance(upsampling, nn.Sequential) else upsampling
