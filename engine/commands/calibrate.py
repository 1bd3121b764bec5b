"""Choose again from which presence score on a prompt counts as found."""

import argparse

from engine.cli import progress_bar
from engine.data import open_splits, wordings
from engine.errors import UserError
from engine.evaluation.card_figures import calibrate_adapter, measure_adapter
from engine.models.bundle import find_adapter, write_card
from engine.prompts import OTHER_STRUCTURES, absent_from
from engine.segmentation.segmenter import Segmenter


def run(options: argparse.Namespace) -> None:
    """Put a new presence threshold on an adapter's card, and what the adapter does with it on the test split."""
    folder = find_adapter(options.adapter)
    segmenter = Segmenter(str(folder), options.base, options.device)
    sets = open_splits(options.data, ("axial",), segmenter.channels, options.drop_overlap)
    if not sets["val"].case_count:
        raise UserError(f"{options.data} has nothing in its split 'val'; name cases for validation")
    others = absent_from(wordings(sets["val"]) | set(segmenter.card.prompts), OTHER_STRUCTURES)
    with progress_bar("calibrating", 1) as update:
        calibration = calibrate_adapter(
            segmenter, sets["val"], others, lambda done, total: update(done, total=total)
        )
    if calibration is None:
        raise UserError(f"the split 'val' of {options.data} shows nothing that is labelled; nothing was changed")
    print(calibration)
    if sets["test"].case_count:
        with progress_bar("testing", sets["test"].case_count) as update:
            _, rates = measure_adapter(segmenter, sets["test"], others, update)
        print(f"test: {rates}")
    write_card(folder, segmenter.card)
    print(f"wrote the card of {folder}")
