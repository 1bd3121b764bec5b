"""SAN, the side adapter network over a frozen CLIP (Xu et al., CVPR 2023), as a baseline for prompts.

A narrow vision transformer beside CLIP reads the image together with CLIP's features, and gives mask
proposals and, for each, a bias on CLIP's attention. CLIP's last layers run once more with one token for each
proposal, whose attention the bias steers to the proposal's region; what these tokens become is compared with
the text. CLIP reads the image at half the side, as in the paper.

Where the paper chooses among classes by a softmax and trains with a matching loss, a prompt here gets one map,
as in the VLSM-Adapter benchmark: the proposals' logits, summed with the mean over channels of proposal
embedding × text embedding as weights. So proposals are learned for what the prompts name, also on a CLIP that
was never trained to compare images and text. The variant "released" is what the benchmark's code trains: it fuses
CLIP's layers 0, 1, 2 into the side layers 0, 3, 6, the reverse of the paper's map, whose fourth fusion then never
comes, and lets no gradient through CLIP, so that neither its position embedding nor the attention biases learn.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.choices import VARIANTS
from engine.errors import UserError
from engine.nets.prompted import PromptedNet
from engine.nets.towers import encode_text, resize_positions, towers_of

DEPTH, HEADS, WIDTH = 8, 6, 240
QUERIES = 100
FUSIONS = 4  # of CLIP's features into states of the side network
ORIGINAL, RELEASED = VARIANTS
FUSED_STATES = {ORIGINAL: (0, 1, 2, 3), RELEASED: (0, 3, 6)}
PROPOSAL_SIZE = 256
SIDE = 640  # of the paper's images; position embeddings are resized to others
CLIP_SCALE = 2


class SAN(PromptedNet):
    """A frozen CLIP with a side adapter network.

    Args:
        network: a CLIPSeg of Hugging Face, of which the CLIP is taken, or an open_clip CLIP with a vision
            transformer.
        hidden_size: width of the side network, a multiple of its 6 heads.
        variant: "original", or "released" (see above).

    Attributes:
        trained: the side network; everything else is frozen.
        patch_size: of which the side of images is a multiple.

    Raises:
        UserError: a CLIP with a ResNet, or a width that does not fit.
    """

    hidden_size: ClassVar[int] = WIDTH
    placements: ClassVar[tuple[str, ...]] = ("",)
    variants: ClassVar[tuple[str, ...]] = VARIANTS

    def __init__(self, network: nn.Module, hidden_size: int = WIDTH, variant: str = ORIGINAL):
        super().__init__()
        clip = towers_of(network)
        if not hasattr(clip.visual, "class_embedding"):
            raise UserError("san needs a CLIP with a vision transformer; choose a CLIPSeg or clip-vit-b-16 as base")
        if hidden_size % HEADS:
            raise UserError(f"the hidden size of san is {hidden_size}; give a multiple of {HEADS}")
        self.clip = clip.requires_grad_(False)
        self.variant = variant
        self.trained = SideNetwork(clip.visual, hidden_size, FUSED_STATES[variant])
        if variant == RELEASED:
            self._freeze_what_gets_no_gradient()
        self.patch_size = CLIP_SCALE * clip.visual.patch_size[0]

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode slices.

        Args:
            pixel_values: (slices, 3, side, side), normalised by the base's mean and standard deviation.

        Returns:
            (slices, proposals, patches + embed_dim): of each proposal its logits, then its embedding.
        """
        features = self._features(pixel_values)
        masks, biases = self.trained(pixel_values, [features[layer][:, 1:] for layer in self._fused_layers])
        if self.variant == RELEASED:
            biases = biases.detach()
        return torch.cat([masks.flatten(2), self._embeddings(features[-1], biases)], dim=2)

    def encode_prompts(self, input_ids: Tensor) -> Tensor:
        """Encode prompts (prompts, tokens) int64 as CLIP's text embeddings (prompts, embed_dim)."""
        return encode_text(self.clip, input_ids)[1]

    def decode(self, maps: Tensor, condition: Tensor) -> Tensor:
        """Decode encoded slices under one condition each.

        Args:
            maps: from `encode_images`.
            condition: (slices, embed_dim) or (1, embed_dim) from `encode_prompts`.

        Returns:
            (slices, side, side): logits.
        """
        size = condition.shape[1]
        masks, embeddings = maps.split([maps.shape[2] - size, size], dim=2)
        weights = (embeddings * condition[:, None]).mean(dim=2)
        grid = round(masks.shape[2] ** 0.5)
        logits = (weights[:, None] @ masks).unflatten(2, (grid, grid))
        scale = self.patch_size // CLIP_SCALE
        return F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)[:, 0]

    def values_per_slice(self, side: int) -> int:
        visual = self.clip.visual
        tokens = QUERIES + (CLIP_SCALE * side // self.patch_size) ** 2
        of_clip = 12 * visual.conv1.out_channels + 2 * self.trained.heads * tokens
        return tokens * (of_clip + 12 * WIDTH + PROPOSAL_SIZE * self.trained.heads)

    @property
    def _fused_layers(self) -> list[int]:
        """How many of CLIP's layers come before each fusion."""
        if self.variant == RELEASED:
            return [0, 1, 2]
        return [len(self.clip.visual.transformer.resblocks) * i // FUSIONS for i in range(FUSIONS)]

    @property
    def _last_quarter(self) -> int:
        return len(self.clip.visual.transformer.resblocks) * (FUSIONS - 1) // FUSIONS

    def _freeze_what_gets_no_gradient(self) -> None:
        side = self.trained
        for part in (side.fusions[-1], side.bias_head, side.bias_scale):
            part.requires_grad_(False)
        side.clip_positions.requires_grad_(False)

    def _features(self, pixel_values: Tensor) -> list[Tensor]:
        """Return CLIP's tokens (slices, 1 + patches, width), class token first, before and after each layer but
        those of the last quarter."""
        visual = self.clip.visual
        side = pixel_values.shape[-1] // CLIP_SCALE
        patches = visual.conv1(F.interpolate(pixel_values, size=(side, side), mode="bilinear", align_corners=False))
        grid = resize_positions(self.trained.clip_positions[1:], patches.shape[2:])
        tokens = patches.flatten(2).transpose(1, 2) + grid
        first = (visual.class_embedding + self.trained.clip_positions[0]).expand(len(tokens), 1, -1)
        features = [visual.ln_pre(torch.cat([first.to(tokens.dtype), tokens], dim=1))]
        for block in visual.transformer.resblocks[: self._last_quarter]:
            features.append(block(features[-1]))
        return features

    def _embeddings(self, features: Tensor, biases: Tensor) -> Tensor:
        """Run the last quarter of CLIP with a token for each proposal.

        Args:
            features: (slices, 1 + patches, width), CLIP's tokens at the last fused layer.
            biases: (slices, heads, proposals, rows, columns) of the attention, on the side network's grid.

        Returns:
            (slices, proposals, embed_dim): the proposals' tokens, projected and of length 1.
        """
        visual, proposals = self.clip.visual, biases.shape[2]
        grid = round((features.shape[1] - 1) ** 0.5)
        pooled = F.adaptive_max_pool2d(biases.flatten(1, 2), (grid, grid))
        mask = attention_mask(pooled.flatten(2).unflatten(1, biases.shape[1:3]))
        tokens = torch.cat([features[:, :1].expand(-1, proposals, -1), features], dim=1)
        for block in visual.transformer.resblocks[self._last_quarter :]:
            tokens = block(tokens, attn_mask=mask)
        return F.normalize(visual.ln_post(tokens[:, :proposals]) @ visual.proj, dim=2)


class SideNetwork(nn.Module):
    """The vision transformer beside CLIP, with its heads for proposals and attention biases.

    `clip_positions` is CLIP's own position embedding, which the paper trains too.

    Args:
        fused_states: before which block, or after the last, each of CLIP's features is added.
    """

    def __init__(self, visual: nn.Module, width: int, fused_states: tuple[int, ...]):
        super().__init__()
        self._fused_states = fused_states
        patch, clip_width = visual.patch_size[0], visual.conv1.out_channels
        self.clip_positions = nn.Parameter(visual.positional_embedding.detach().clone())
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty((SIDE // patch) ** 2, width))
        self.queries = nn.Parameter(torch.empty(QUERIES, width))
        self.query_positions = nn.Parameter(torch.empty(QUERIES, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, HEADS, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
            )
            for _ in range(DEPTH)
        )
        self.fusions = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(clip_width, eps=1e-6), nn.Linear(clip_width, width)) for _ in range(FUSIONS)
        )
        self.heads = visual.transformer.resblocks[0].attn.num_heads
        self.query_head = _perceptron(width, PROPOSAL_SIZE)
        self.mask_head = _perceptron(width, PROPOSAL_SIZE)
        self.bias_head = _perceptron(width, PROPOSAL_SIZE * self.heads)
        self.bias_scale = nn.Linear(1, 1)
        self._draw()

    def forward(self, pixel_values: Tensor, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Propose masks.

        Args:
            pixel_values: (slices, 3, side, side).
            features: CLIP's patch tokens, each (slices, patches, clip_width).

        Returns:
            Logits (slices, proposals, rows, columns) and attention biases (slices, heads, proposals, rows,
            columns), a row for each patch.
        """
        patches = self.patches(pixel_values)
        grid = patches.shape[2:]
        positions = torch.cat([self.query_positions, resize_positions(self.positions, grid)])
        queries = self.queries.expand(len(patches), -1, -1).to(patches.dtype)
        tokens = torch.cat([queries, patches.flatten(2).transpose(1, 2)], dim=1) + positions
        tokens = self._fuse(tokens, 0, features, grid)
        for index, block in enumerate(self.blocks, start=1):
            tokens = block(tokens if index == 1 else tokens + positions)
            tokens = self._fuse(tokens, index, features, grid)
        queries, pixels = self.query_head(tokens[:, :QUERIES]), tokens[:, QUERIES:]
        masks = torch.einsum("sqc,spc->sqp", queries, self.mask_head(pixels))
        keys = self.bias_head(pixels).unflatten(2, (self.heads, PROPOSAL_SIZE))
        biases = self.bias_scale(torch.einsum("sqc,sphc->shqp", queries, keys)[..., None])[..., 0]
        return masks.unflatten(2, grid), biases.unflatten(3, grid)

    def _fuse(self, tokens: Tensor, index: int, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        if index not in self._fused_states:
            return tokens
        position = self._fused_states.index(index)
        fused = self.fusions[position](features[position])
        side = round(fused.shape[1] ** 0.5)
        square = fused.transpose(1, 2).unflatten(2, (side, side))
        resized = F.interpolate(square, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :QUERIES], tokens[:, QUERIES:] + resized], dim=1)

    def _draw(self) -> None:
        for weight in (self.positions, self.queries, self.query_positions):
            nn.init.trunc_normal_(weight, std=0.02)
        for block in self.blocks:
            for name, weight in block.named_parameters():
                if weight.ndim == 2:
                    nn.init.trunc_normal_(weight, std=0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(weight)
        for fusion in self.fusions:
            nn.init.kaiming_uniform_(fusion[1].weight, a=1)
            nn.init.zeros_(fusion[1].bias)


def _perceptron(width: int, size: int) -> nn.Sequential:
    hidden = PROPOSAL_SIZE
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size)
    )


def attention_mask(biases: Tensor) -> Tensor:
    """Return the mask (slices · heads, tokens, tokens) for the tokens of proposals, class and patches, in this
    order: a proposal attends to itself and, biased, to the patches; nothing attends to a proposal."""
    slices, heads, proposals, patches = biases.shape
    among = torch.full((proposals, proposals), -torch.inf, dtype=biases.dtype, device=biases.device)
    among = among.fill_diagonal_(0)
    to_class = among.new_full((proposals, 1), -torch.inf)
    rows = torch.cat([torch.cat([among, to_class], dim=1).expand(slices, heads, -1, -1), biases], dim=3)
    others = among.new_zeros(1 + patches, proposals + 1 + patches)
    others[:, :proposals] = -torch.inf
    return torch.cat([rows, others.expand(slices, heads, -1, -1)], dim=2).flatten(0, 1)
