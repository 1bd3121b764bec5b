"""The loss of training: 1.5 · Dice + 1 · binary cross-entropy (VLSM-Adapter, section 3)."""

from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from engine.training.plan import CROSS_ENTROPY_WEIGHT, DICE_SMOOTHING, DICE_WEIGHT

UNKNOWN = -1  # in a mask, where nobody has labelled


class SegmentationLoss(nn.Module):
    """Soft Dice of each mask, smoothed by some pixels so that empty masks have a gradient, plus cross-entropy."""

    def __init__(
        self,
        dice_weight: float = DICE_WEIGHT,
        cross_entropy_weight: float = CROSS_ENTROPY_WEIGHT,
        smoothing: float = DICE_SMOOTHING,
    ):
        super().__init__()
        self.dice_weight, self.cross_entropy_weight = dice_weight, cross_entropy_weight
        self.dice = DiceLoss(smooth_nr=smoothing, smooth_dr=smoothing)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the mean loss for logits and masks (0, 1, or `UNKNOWN` for pixels that are left out; float), both
        (samples, side, side)."""
        return self._sum(logits.sigmoid(), logits, masks)

    def _sum(self, probabilities: Tensor, logits: Tensor, masks: Tensor) -> Tensor:
        known = (masks != UNKNOWN).to(logits.dtype)
        masks = masks * known
        dice = self.dice((probabilities * known)[:, None], masks[:, None])
        pixels = binary_cross_entropy_with_logits(logits, masks, known, reduction="none")
        cross_entropy = (pixels.sum((1, 2)) / known.sum((1, 2)).clamp(min=1)).mean()
        return self.dice_weight * dice + self.cross_entropy_weight * cross_entropy


class ReferenceLoss(SegmentationLoss):
    """What the paper's code computes: probabilities where the cross-entropy expects logits, so that a perfect
    answer still costs 0.31 for each foreground and 0.69 for each background pixel."""

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        probabilities = logits.sigmoid()
        return self._sum(probabilities, probabilities, masks)


LOSSES: dict[str, type[SegmentationLoss]] = {"logits": SegmentationLoss, "reference": ReferenceLoss}
