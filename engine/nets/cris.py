"""CRIS, referring segmentation with CLIP's ResNet (Wang et al., CVPR 2022), as a baseline trained end to end.

A neck fuses three stages of the ResNet with the sentence, a transformer decoder lets every position of the
fused map attend to the words, and the sentence becomes a 3 × 3 convolution that turns the result into a map.
What of the neck depends on the image alone is done when images are encoded.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.choices import VARIANTS
from engine.errors import UserError
from engine.nets.prompted import PromptedNet
from engine.nets.towers import encode_text, resize_positions, towers_of

DEPTH, HEADS = 3, 8
DROPOUT = 0.2  # the VLSM-Adapter benchmark's
KERNEL = 3
STRIDE = 32  # of the ResNet's last stage
ENLARGEMENTS = {
    "original": {"mode": "bilinear", "align_corners": False},
    "released": {"mode": "bicubic", "align_corners": True},
}

Condition = tuple[Tensor, Tensor, Tensor]


class CRIS(PromptedNet):
    """CRIS over an open_clip CLIP with a ResNet, which it takes over; every weight is trained.

    Args:
        variant: "original", or "released" as in the VLSM-Adapter benchmark's code, whose last enlargement is
            bicubic with aligned corners.

    Attributes:
        patch_size: of which the side of images is a multiple; the paper's side is 416.

    Raises:
        UserError: a CLIPSeg, or a CLIP with a vision transformer.
    """

    hidden_size: ClassVar[int] = 0
    placements: ClassVar[tuple[str, ...]] = ("",)
    variants: ClassVar[tuple[str, ...]] = VARIANTS

    def __init__(self, clip: nn.Module, variant: str = VARIANTS[0]):
        super().__init__()
        self._enlargement = ENLARGEMENTS[variant]
        clip = towers_of(clip)
        if not hasattr(clip.visual, "attnpool"):
            raise UserError("cris needs a CLIP with a ResNet; choose clip-rn50 or another such CLIP as base")
        width, embed_dim = clip.text_projection.shape
        stages = [s[-1].conv3.out_channels for s in (clip.visual.layer2, clip.visual.layer3)]
        self.patch_size = STRIDE
        self.clip = clip.requires_grad_(True)
        del clip.logit_scale  # nothing here depends on it
        self.shortcut = nn.Sequential(
            nn.Conv2d(clip.visual.attnpool.c_proj.in_features, embed_dim, 1, bias=False), nn.BatchNorm2d(embed_dim)
        )
        self.neck = Neck((*stages, embed_dim), width)
        self.decoder = nn.ModuleList(DecoderLayer(width) for _ in range(DEPTH))
        self.decoder_norm = nn.LayerNorm(width)
        self.projector = Projector(width, embed_dim)

    @property
    def trained(self) -> nn.Module:
        return self

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode slices.

        Args:
            pixel_values: (slices, 3, side, side), normalised by the base's mean and standard deviation.

        Returns:
            (slices, 8 · width, side / 32, side / 32): the three stages, projected by the neck; the finer ones
            with each 2 × 2 block of positions as channels.
        """
        visual = self.clip.visual
        third = visual.layer2(visual.layer1(visual.stem(pixel_values)))
        fourth = visual.layer3(third)
        return self.neck.project(third, fourth, self._attention_pool(visual.layer4(fourth)))

    def encode_prompts(self, input_ids: Tensor) -> Condition:
        """Encode prompts.

        Args:
            input_ids: (prompts, tokens) int64, each with an end-of-text token; what follows it is ignored.

        Returns:
            The words (prompts, tokens, width), the sentence (prompts, embed_dim), and true where there is no
            word any more (prompts, tokens).
        """
        words, sentence, end = encode_text(self.clip, input_ids)
        padding = torch.arange(words.shape[1], device=end.device) > end[:, None]
        return words, sentence, padding

    def decode(self, maps: Tensor, condition: Condition) -> Tensor:
        """Decode encoded slices under one condition each.

        Args:
            maps: from `encode_images`.
            condition: from `encode_prompts`, for as many prompts as slices, or for one.

        Returns:
            (slices, side, side): logits.
        """
        words, sentence, padding = condition
        fused = self.neck(maps, sentence)
        words, padding = words.expand(len(maps), -1, -1), padding.expand(len(maps), -1)
        positions, order = _sines_of_grid(fused), _sines(words.shape[1], words.shape[2], words)
        tokens = fused.flatten(2).transpose(1, 2)
        for layer in self.decoder:
            tokens = layer(tokens, positions, words, order, padding)
        decoded = self.decoder_norm(tokens).transpose(1, 2).unflatten(2, fused.shape[2:])
        logits = self.projector(decoded, sentence.expand(len(maps), -1))
        side = self.patch_size * maps.shape[3]
        return F.interpolate(logits[:, None], size=(side, side), **self._enlargement)[:, 0]

    def values_per_slice(self, side: int) -> int:
        return 12 * (side // 4) ** 2 * self.clip.visual.layer1[-1].conv3.out_channels

    def _attention_pool(self, features: Tensor) -> Tensor:
        """Run CLIP's attention pool with every position as a query, and none for their mean."""
        pool = self.clip.visual.attnpool
        positions = resize_positions(pool.positional_embedding[1:], features.shape[2:])
        tokens = features.flatten(2).transpose(1, 2) + positions
        query, key, value = (
            linear(tokens).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
            for linear in (pool.q_proj, pool.k_proj, pool.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        pooled = pool.c_proj(attended).transpose(1, 2).unflatten(2, features.shape[2:])
        return (pooled + self.shortcut(features)).relu()


class Neck(nn.Module):
    """The feature pyramid that brings three stages and the sentence to one map of stride 16.

    Args:
        stages: channels of the ResNet's third and fourth stage and of the pooled fifth.
        width: channels of the result.
    """

    def __init__(self, stages: tuple[int, int, int], width: int):
        super().__init__()
        third, fourth, fifth = stages
        fine, coarse = width // 2, 2 * width
        self.sizes = (coarse, 4 * width, 4 * fine)
        self.project_fifth = _convolution(fifth, coarse, 1)
        self.project_fourth = _convolution(fourth, width, 3)
        self.project_third = _convolution(third, fine, 3)
        self.project_sentence = nn.Sequential(nn.Linear(fifth, coarse, bias=False), SentenceNorm(coarse), nn.ReLU())
        self.norm_fifth = nn.BatchNorm2d(coarse)
        self.join_fourth = _convolution(coarse + width, width, 1)
        self.join_third = _convolution(fine + width, width, 1)
        self.refine = nn.ModuleList(_convolution(size, width, 3) for size in (width, width, coarse))
        self.aggregate = _convolution(3 * width, width, 1)
        self.locate = nn.Sequential(_convolution(width + 2, width, 3), _convolution(width, width, 3))

    def project(self, third: Tensor, fourth: Tensor, fifth: Tensor) -> Tensor:
        """Project the stages, of strides 8, 16 and 32, and pack them into one map of stride 32."""
        third = F.avg_pool2d(self.project_third(third), 2)
        parts = (self.project_fifth(fifth), _fold(self.project_fourth(fourth)), _fold(third))
        return torch.cat(parts, dim=1)

    def forward(self, maps: Tensor, sentence: Tensor) -> Tensor:
        """Fuse packed stages with one sentence each, or with the same one.

        Args:
            maps: (slices, 8 · width, rows, columns) from `project`.
            sentence: (slices, embed_dim) or (1, embed_dim).

        Returns:
            (slices, width, 2 · rows, 2 · columns).
        """
        fifth, fourth, third = maps.split(self.sizes, dim=1)
        fourth, third = F.pixel_shuffle(fourth, 2), F.pixel_shuffle(third, 2)
        fifth = self.norm_fifth(fifth * self.project_sentence(sentence)[..., None, None]).relu()
        fourth = self.join_fourth(torch.cat([fourth, _doubled(fifth)], dim=1))
        third = self.join_third(torch.cat([third, fourth], dim=1))
        third, fourth, fifth = (r(part) for r, part in zip(self.refine, (third, fourth, fifth), strict=True))
        fused = self.aggregate(torch.cat([third, fourth, _doubled(fifth)], dim=1))
        return self.locate(torch.cat([fused, _coordinates(fused)], dim=1))


class SentenceNorm(nn.BatchNorm1d):
    """Batch norm that takes its running statistics when it is trained with a single sentence."""

    def forward(self, sentences: Tensor) -> Tensor:
        if len(sentences) > 1 or not self.training:
            return super().forward(sentences)
        return F.batch_norm(sentences, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class DecoderLayer(nn.Module):
    """Self-attention among positions, attention to the words, and an MLP, each normed before and after."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.self_attention = nn.MultiheadAttention(width, HEADS, DROPOUT, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.word_attention = nn.MultiheadAttention(width, HEADS, DROPOUT, batch_first=True)
        self.word_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.LayerNorm(4 * width),
            nn.Linear(4 * width, width),
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, positions: Tensor, words: Tensor, order: Tensor, padding: Tensor) -> Tensor:
        """Return tokens (slices, positions, width); `positions` and `order` are added to queries and keys."""
        normed = self.norms[0](tokens)
        placed = normed + positions
        attended, _ = self.self_attention(placed, placed, normed, need_weights=False)
        tokens = tokens + self.dropout(self.self_norm(attended))
        placed = self.norms[1](tokens) + positions
        attended, _ = self.word_attention(placed, words + order, words, padding, need_weights=False)
        tokens = tokens + self.dropout(self.word_norm(attended))
        return tokens + self.dropout(self.mlp(self.norms[2](tokens)))


class Projector(nn.Module):
    """Upsampling to stride 4, and a convolution whose kernel and bias are made from the sentence."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        channels = width // 2
        self.upsample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _convolution(width, width, 3),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _convolution(width, channels, 3),
            nn.Conv2d(channels, channels, 1),
        )
        self.kernel = nn.Linear(embed_dim, channels * KERNEL**2 + 1)

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (slices, rows, columns) for features (slices, width, rows, columns) of stride 16."""
        features = self.upsample(features)
        slices, channels = features.shape[:2]
        kernel = self.kernel(sentence)
        weight = kernel[:, :-1].reshape(slices, channels, KERNEL, KERNEL)
        logits = F.conv2d(features.flatten(0, 1)[None], weight, kernel[:, -1], padding=KERNEL // 2, groups=slices)
        return logits[0]


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _fold(features: Tensor) -> Tensor:
    return F.pixel_unshuffle(features, 2)


def _doubled(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


def _coordinates(features: Tensor) -> Tensor:
    """Return x and y in -1..1 of every position (slices, 2, rows, columns)."""
    slices, _, rows, columns = features.shape
    y, x = (torch.linspace(-1, 1, n, dtype=features.dtype, device=features.device) for n in (rows, columns))
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)]).expand(slices, -1, -1, -1)


def _sines(length: int, size: int, like: Tensor) -> Tensor:
    """Return the sines and cosines of positions (length, size), in alternate channels."""
    rates = 10000.0 ** (-torch.arange(0, size, 2, device=like.device) / size)
    angles = torch.arange(length, device=like.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).to(like.dtype)


def _sines_of_grid(features: Tensor) -> Tensor:
    """Return (rows · columns, channels): the column in the first half of the channels, the row in the second."""
    _, channels, rows, columns = features.shape
    by_column = _sines(columns, channels // 2, features).expand(rows, -1, -1)
    by_row = _sines(rows, channels // 2, features)[:, None].expand(-1, columns, -1)
    return torch.cat([by_column, by_row], dim=2).flatten(0, 1)
