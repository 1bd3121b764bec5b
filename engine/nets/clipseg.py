"""CLIPSeg in three parts, over the weights of Hugging Face's `CLIPSegForImageSegmentation`.

Hugging Face's own forward runs everything anew for each image and prompt, and lets no gradient into the
encoders. Here the image side and the text side are run apart, so that a slice is encoded once for all its
prompts, and an adapter may act inside both encoders.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPSegForImageSegmentation

from engine.nets.adapter import Adapter, BaseShape
from engine.nets.prompted import PromptedNet, repeat_for_prompts

LEGACY_END_OF_TEXT = 2  # the public configuration says 2 and means the highest token of each prompt


class CLIPSeg(PromptedNet):
    """A CLIPSeg, frozen unless `freeze` is false, with an adapter acting on it.

    Args:
        network: the base; it is taken over and cut to the vision layers that the decoder needs.
        adapter: what acts on it; the base alone when None.
        freeze: stop gradients at all weights of the base.

    Attributes:
        recompute_activations: the backward pass computes each vision layer's inside again instead of finding it in
            memory.
    """

    recompute_activations: bool = False

    def __init__(self, network: CLIPSegForImageSegmentation, adapter: Adapter | None = None, freeze: bool = True):
        super().__init__()
        self.shape = BaseShape.of(network.config)
        self.patch_size = network.config.vision_config.patch_size
        self.vision = network.clip.vision_model
        self.text = network.clip.text_model
        self.text_projection = network.clip.text_projection
        self.decoder = network.decoder
        self.adapter = adapter or Adapter()
        self.vision.encoder.layers = self.vision.encoder.layers[: max(self.shape.extract_layers) + 1]
        if freeze:
            for part in (self.vision, self.text, self.text_projection, self.decoder):
                part.requires_grad_(False)
        self.adapter.attach(self)

    @property
    def trained(self) -> nn.Module:
        return self.adapter

    @property
    def frozen_encoder(self) -> bool:
        return self.adapter.frozen_encoder

    def forward(self, pixel_values: Tensor | None, input_ids: Tensor, activations: Tensor | None = None) -> Tensor:
        """Return logits as every net does; where what `activations` gave is at hand, it is taken instead of pixel
        values, and the encoder does not run."""
        maps = self.encode_images(pixel_values) if activations is None else self.reduce(activations)
        return self.decode(repeat_for_prompts(maps, input_ids), self.encode_prompts(input_ids))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode slices for the decoder.

        Returns:
            (slices, depth, tokens, reduce_dim): the extracted activations, reduced as the decoder reads
            them, deepest first; token 0 is the class token.
        """
        return self.reduce(self.activations(pixel_values))

    def activations(self, pixel_values: Tensor) -> Tensor:
        """Return what is taken out after `extract_layers` (slices, depth, tokens, width), the shallowest first."""
        features = self.vision.pre_layrnorm(self.vision.embeddings(pixel_values))
        taken = []
        for index, layer in enumerate(self.vision.encoder.layers):
            work = (layer, features, index, self.adapter.vision_attention, self.adapter.vision_mlp)
            if self.recompute_activations and torch.is_grad_enabled():
                features = checkpoint(_encoder_layer, *work, use_reentrant=False)
            else:
                features = _encoder_layer(*work)
            if index in self.shape.extract_layers:
                taken.append(features)
        return torch.stack(taken, dim=1)

    def reduce(self, activations: Tensor) -> Tensor:
        """Return the maps of `encode_images` for what `activations` gave."""
        adapted = [self.adapter.activation(index, a) for index, a in enumerate(activations.unbind(dim=1))]
        reduced = [reduce(a) for reduce, a in zip(self.decoder.reduces, reversed(adapted), strict=True)]
        return torch.stack(reduced, dim=1)

    def encode_prompts(self, input_ids: Tensor) -> Tensor:
        """Return the condition vectors (prompts, condition_size)."""
        end = self._end_of_text(input_ids)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        features = self.text.embeddings(input_ids=input_ids[:, : int(end.max()) + 1])
        causal = torch.full((features.shape[1],) * 2, -torch.inf, dtype=features.dtype, device=features.device)
        causal = causal.triu(1)[None, None]
        tokens = []
        for index, layer in enumerate(self.text.encoder.layers):
            features = _encoder_layer(
                layer, features, index, self.adapter.text_attention, self.adapter.text_mlp, causal
            )
            if index in self.shape.extract_layers:
                tokens.append(features[rows, end])
        projected = self.text_projection(self.text.final_layer_norm(features[rows, end]))
        return self.adapter.condition(projected, tokens)

    def decode(self, maps: Tensor, condition: Tensor) -> Tensor:
        output = torch.zeros_like(maps[:, 0])
        for index, layer in enumerate(self.decoder.layers):
            output = output + maps[:, index]
            if index == self.decoder.conditional_layer:
                scale, shift = self.decoder.film_mul(condition), self.decoder.film_add(condition)
                output = scale[:, None] * output + shift[:, None]
            output = layer(output, attention_mask=None)
        grid = round((output.shape[1] - 1) ** 0.5)
        patches = output[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        return self.decoder.transposed_convolution(patches).squeeze(1)

    def activations_shape(self, side: int) -> tuple[int, int, int]:
        """Return what `activations` gives for one slice: depth, tokens, width."""
        return len(self.shape.extract_layers), (side // self.patch_size) ** 2 + 1, self.shape.vision_size

    def values_per_slice(self, side: int) -> int:
        tokens = (side // self.patch_size) ** 2 + 1
        return tokens * (self.vision.config.intermediate_size + 8 * self.vision.config.hidden_size)

    def _end_of_text(self, input_ids: Tensor) -> Tensor:
        token = self.text.config.eos_token_id
        if token == LEGACY_END_OF_TEXT:
            return input_ids.argmax(dim=1)
        return (input_ids == token).int().argmax(dim=1)


def _encoder_layer(
    layer: nn.Module,
    features: Tensor,
    index: int,
    after_attention: Callable[[int, Tensor], Tensor],
    after_mlp: Callable[[int, Tensor], Tensor],
    attention_mask: Tensor | None = None,
) -> Tensor:
    attended, _ = layer.self_attn(layer.layer_norm1(features), attention_mask=attention_mask)
    features = features + after_attention(index, attended)
    return features + after_mlp(index, layer.mlp(layer.layer_norm2(features)))
