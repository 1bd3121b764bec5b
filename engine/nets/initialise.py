"""Start weights for a CLIPSeg that is trained from nothing."""

import torch
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation


def new_network(config: CLIPSegConfig) -> CLIPSegForImageSegmentation:
    """Build a CLIPSeg with random weights under which it can learn.

    Hugging Face draws the decoder's weights with a standard deviation of 1: the logits start near ±500 and
    training collapses to empty masks. Here the decoder has PyTorch's own start weights, FiLM starts near the
    identity but listens to the condition, the last bias says "mostly background", and the vision encoder is
    drawn with 0.02; the logits are of order 1. The text encoder keeps CLIP's own start weights: with smaller
    ones all prompts begin as nearly the same vector, and the decoder learns to ignore them.
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
    return network


def _last_convolution(network: CLIPSegForImageSegmentation) -> nn.ConvTranspose2d:
    upsampling = network.decoder.transposed_convolution
    return upsampling[-1] if isinstance(upsampling, nn.Sequential) else upsampling
