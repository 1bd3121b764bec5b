"""The loss of training: 1.5 · Dice + 1 · binary cross-entropy (VLSM-Adapter, section 3)."""

from monai.losses import DiceLoss
from torch import Tensor, nn

from engine.training.plan import CROSS_ENTROPY_WEIGHT, DICE_SMOOTHING, DICE_WEIGHT


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
        self.cross_entropy = nn.BCEWithLogitsLoss()

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the mean loss for logits and masks (0 or 1, float), both (samples, side, side)."""
        dice = self.dice(logits[:, None].sigmoid(), masks[:, None])
        return self.dice_weight * dice + self.cross_entropy_weight * self.cross_entropy(logits, masks)


class ReferenceLoss(SegmentationLoss):
    """What the paper's code computes: probabilities where the cross-entropy expects logits, so that a perfect
    answer still costs 0.31 for each foreground and 0.69 for each background pixel."""

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        probabilities = logits.sigmoid()
        dice = self.dice(probabilities[:, None], masks[:, None])
        return self.dice_weight * dice + self.cross_entropy_weight * self.cross_entropy(probabilities, masks)


LOSSES: dict[str, type[SegmentationLoss]] = {"logits": SegmentationLoss, "reference": ReferenceLoss}
