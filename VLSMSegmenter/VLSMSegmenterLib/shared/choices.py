"""What can be chosen for a run, in words. Knows no Qt."""

import html

import slicer

from engine.imaging.volumes import intensity, planes
from VLSMSegmenterLib.shared import words
from VLSMSegmenterLib.shared.volumes import modality_of

NO_ADAPTER = "none: the base alone"
OWN = "the adapter's own"
PLANES = (*planes.PLANES, planes.ALL_PLANES, "auto")
WINDOWS = ("auto", *intensity.CT_WINDOWS, "percentiles", "full")  # a volume in the scene keeps none of its file


def card_at_a_glance(card: dict | None, volume: "slicer.vtkMRMLScalarVolumeNode | None") -> str:
    """Return what matters of an adapter's card, as HTML, with a warning where the volume does not fit."""
    if card is None:
        return ""
    lines = [card.get("intended_use"), card.get("data_set")]
    dice = words.dice(card)
    measured = f"Dice {dice} on its test split" if dice else "Dice not measured"
    facts = [card.get("modality") and f"for {card['modality']}", measured, card.get("licence")]
    lines.append(" · ".join(fact for fact in facts if fact))
    glance = "<br>".join(html.escape(line) for line in lines if line)
    kind = (modality_of(volume), volume.IsA("vtkMRMLVectorVolumeNode")) if volume else None
    warning = words.modality_warning(card.get("modality", ""), *kind) if kind else ""
    return f'{glance}<br><b style="color: #c0392b">{html.escape(warning)}</b>' if warning else glance
