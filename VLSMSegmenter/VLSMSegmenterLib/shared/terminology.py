"""SNOMED codes of prompts, looked up in the terminologies that Slicer has loaded.

Slicer's own lists are the source: nothing is kept here that could differ from them.
"""

import slicer
import vtk

from engine.spelling import plain_words

PREFERRED = (
    "Segmentation category and type - 3D Slicer General Anatomy list",
    "Segmentation category and type - DICOM master list",
)
REGIONS = "Anatomic codes - DICOM master list"
TISSUE = f"{PREFERRED[0]}~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~{REGIONS}~^^~^^"


def terminology_of(prompt: str, logic: "slicer.vtkSlicerTerminologiesModuleLogic | None" = None) -> str:
    """Return the serialised entry of a prompt, "Tissue" where no list knows it.

    Left and right are found as modifiers: "left lung" is Lung, Left. Articles, plurals, capitals and British
    spelling do not matter.

    Args:
        logic: of the module Terminologies; Slicer's own when None.
    """
    logic = logic or _slicers_logic()
    if logic is None:
        return TISSUE
    names = vtk.vtkStringArray()
    logic.GetLoadedTerminologyNames(names)
    loaded = {names.GetValue(number) for number in range(names.GetNumberOfValues())}
    for name in PREFERRED:
        if name in loaded:
            entries = _entries(logic, name)
            for key in _keys(prompt):
                if key in entries:
                    return entries[key]
    return TISSUE


def _slicers_logic() -> "slicer.vtkSlicerTerminologiesModuleLogic | None":
    module = getattr(getattr(slicer, "modules", None), "terminologies", None)
    return module.logic() if module else None


def _normal(text: str) -> str:
    return " ".join(plain_words(text))


def _keys(prompt: str) -> list[str]:
    key = _normal(prompt)
    return [key, key.removesuffix("s")]


def _entries(logic: "slicer.vtkSlicerTerminologiesModuleLogic", name: str) -> dict[str, str]:
    """Return the serialised entries of a list by what they may be called, the list's first of equals."""
    entries: dict[str, str] = {}
    for number in range(logic.GetNumberOfCategoriesInTerminology(name)):
        category = slicer.vtkSlicerTerminologyCategory()
        logic.GetNthCategoryInTerminology(name, number, category)
        for position in range(logic.GetNumberOfTypesInTerminologyCategory(name, category)):
            kind = slicer.vtkSlicerTerminologyType()
            logic.GetNthTypeInTerminologyCategory(name, category, position, kind)
            plain = _serialised(logic, name, category, kind, None)
            entries.setdefault(_normal(kind.GetCodeMeaning()), plain)
            entries.setdefault(_normal(kind.GetSlicerLabel() or kind.GetCodeMeaning()), plain)
            for index in range(logic.GetNumberOfTypeModifiersInTerminologyType(name, category, kind)):
                modifier = slicer.vtkSlicerTerminologyType()
                logic.GetNthTypeModifierInTerminologyType(name, category, kind, index, modifier)
                entry = _serialised(logic, name, category, kind, modifier)
                entries.setdefault(_normal(f"{modifier.GetCodeMeaning()} {kind.GetCodeMeaning()}"), entry)
                if modifier.GetSlicerLabel():
                    entries.setdefault(_normal(modifier.GetSlicerLabel()), entry)
    return entries


def _serialised(logic, name: str, category, kind, modifier) -> str:
    codes = [
        value
        for part in (category, kind, modifier)
        for value in (
            (part.GetCodeValue(), part.GetCodingSchemeDesignator(), part.GetCodeMeaning()) if part else ("", "", "")
        )
    ]
    return logic.SerializeTerminologyEntry(name, *codes, REGIONS, *[""] * 6)
