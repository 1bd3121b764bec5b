"""The plain way, against which the engine is measured: Hugging Face's modules as they come, in fp32."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPSegForImageSegmentation

from engine.imaging.volumes.intensity import intensity_range
from engine.imaging.volumes.volume import Volume
from engine.models.bases import Base
from engine.nets.adapter import Adapter
from engine.prompts import encode_prompts
from engine.segmentation.pixels import to_pixel_values, to_slice_size


class PlainForward:
    """The model's own forward, one slice and one prompt at a time."""

    def __init__(self, base: Base, device: torch.device):
        self.base = base
        self.device = device
        self.tokenizer = base.load_tokenizer()
        self.network: CLIPSegForImageSegmentation = base.load_network().to(device)

    @torch.inference_mode()
    def segment(self, volume: Volume, prompt: str) -> np.ndarray:
        """Return probabilities (z, y, x) float32 of axial slices, percentiles window."""
        low, high = intensity_range(volume)
        tokens = encode_prompts(self.tokenizer, [prompt]).to(self.device)
        results = []
        for voxels in volume.voxels:
            unit = ((torch.from_numpy(voxels).to(self.device).float() - low) / (high - low)).clamp(0, 1)
            pixel_values = to_pixel_values(unit[None], self.base.side, self.base.mean, self.base.std)
            logits = self.network(pixel_values=pixel_values, input_ids=tokens).logits
            results.append(to_slice_size(logits.reshape(1, *logits.shape[-2:]), *voxels.shape)[0].cpu().numpy())
        return np.stack(results)

    @torch.inference_mode()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Return what the vision encoder gives for slices (n, 3, side, side)."""
        return self.network.clip.vision_model(pixel_values, interpolate_pos_encoding=True).last_hidden_state


class PlainTraining(nn.Module):
    """An adapter trained through both of Hugging Face's encoders, which run whole in every step.

    Hugging Face's own forward lets no gradient into the encoders, so its parts are called one after another. Hooks
    put the adapter where it acts.
    """

    def __init__(self, network: CLIPSegForImageSegmentation, adapter: Adapter):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.adapter = adapter
        encoders = ((network.clip.vision_model, "vision"), (network.clip.text_model, "text"))
        for tower, branch in encoders:
            for index, layer in enumerate(tower.encoder.layers):
                attention, mlp = getattr(adapter, f"{branch}_attention"), getattr(adapter, f"{branch}_mlp")
                layer.self_attn.register_forward_hook(
                    lambda _, inputs, output, index=index, adapt=attention: (adapt(index, output[0]), output[1])
                )
                layer.mlp.register_forward_hook(
                    lambda _, inputs, output, index=index, adapt=mlp: adapt(index, output)
                )

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """Return logits (samples, side, side), one prompt a slice."""
        clip, taken = self.network.clip, [layer + 1 for layer in self.network.extract_layers]
        seen = clip.vision_model(pixel_values, output_hidden_states=True, interpolate_pos_encoding=True)
        activations = [self.adapter.activation(i, seen.hidden_states[n]) for i, n in enumerate(taken)]
        read = clip.text_model(input_ids, output_hidden_states=True)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        end = (input_ids == self.network.config.text_config.eos_token_id).int().argmax(dim=1)
        tokens = [read.hidden_states[n][rows, end] for n in taken]
        condition = self.adapter.condition(clip.text_projection(read.pooler_output), tokens)
        return self.network.decoder(activations, condition).logits.reshape(len(input_ids), *pixel_values.shape[-2:])
