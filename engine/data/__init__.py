"""Labelled images for training and evaluation: pictures and volumes, in three layouts.

All are seen as one list of annotations: an image, the prompts that describe one structure in it, and the mask of
that structure. Splits go by picture, volume or patient, never by slice.
"""

from engine.data.annotations import (
    Annotation,
    Case,
    DataSet,
    Truth,
    check_labelled,
    shows_anything,
    unnamed_values,
    usual_prompts,
    wordings,
)
from engine.data.splits import is_data_set, open_data_set, open_splits, shared_images

__all__ = [
    "Annotation",
    "Case",
    "DataSet",
    "Truth",
    "check_labelled",
    "is_data_set",
    "open_data_set",
    "open_splits",
    "shared_images",
    "shows_anything",
    "unnamed_values",
    "usual_prompts",
    "wordings",
]
