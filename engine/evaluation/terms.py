"""Data sets by the names of their folders: who made them, under which terms, and whether images may be shown."""

from dataclasses import dataclass

from engine.data import head
from engine.pictures import phantoms


@dataclass(frozen=True)
class Terms:
    """What may be done with the images of a data set.

    Attributes:
        title, source, licence: for people.
        shown: whether the licence allows to show some of its images, with this credit.
        reason: why not.
        draw: makes a picture to show instead.
        together: beginnings of prompts that are asked of one image, for one picture.
    """

    title: str
    source: str
    licence: str
    shown: bool = False
    reason: str = ""
    draw: phantoms.Draw | None = None
    together: tuple[str, ...] = ()

    @property
    def credit(self) -> str:
        return f"Images: {self.title}, {self.licence}" if self.shown else "Drawn pictures, which show no patient"


TERMS = {
    "chest_xray": Terms(
        title="COVID-19 Chest X-ray Segmentations, General Blockchain",
        source="https://github.com/GeneralBlockchain/covid-19-chest-xray-segmentations-dataset; images gathered by "
        "J. P. Cohen et al., https://github.com/ieee8023/covid-chestxray-dataset",
        licence="CC BY 4.0, some of the images CC BY-NC-SA 4.0",
        shown=True,
        together=("left lung", "right lung", "cardiomediastinum"),
    ),
    "hippocampus_mr": Terms(
        title="Medical Segmentation Decathlon, task 4 (hippocampus)",
        source="M. Antonelli et al., Nature Communications 13, 4128 (2022), http://medicaldecathlon.com",
        licence="CC BY-SA 4.0",
        shown=True,
    ),
    "foot_ulcer": Terms(
        title="FUSeg, the Foot Ulcer Segmentation Challenge",
        source="C. Wang et al., arXiv 2201.00414, https://github.com/uwm-bigdata/wound-segmentation",
        licence="CC BY-NC",
        shown=True,
    ),
    "brain_tumour_mr": Terms(
        title="BraTS 2015",
        source="B. H. Menze et al., IEEE Transactions on Medical Imaging 34, 1993 (2015); normalised by "
        "K. Kamnitsas for DeepMedic",
        licence="CC BY-NC-SA 3.0",
        shown=True,
    ),
    "kvasir_polyp": Terms(
        title="Kvasir-SEG",
        source="D. Jha et al., MultiMedia Modeling (2020), https://datasets.simula.no/kvasir-seg/",
        licence="research and education",
        reason="it is for research and education only",
        draw=phantoms.polyp,
    ),
    "isic": Terms(
        title="ISIC",
        source="the International Skin Imaging Collaboration, https://www.isic-archive.com",
        licence="terms differ from image to image",
        reason="its terms differ from image to image",
        draw=phantoms.skin_lesion,
    ),
    "busi": Terms(
        title="BUSI",
        source="W. Al-Dhabyani et al., Data in Brief 28, 104863 (2020)",
        licence="not known here",
        reason="its terms are not known here",
        draw=phantoms.breast_tumour,
    ),
    head.NAME: Terms(
        title="MNI152 (ICBM 2009a)",
        source="V. Fonov et al., NeuroImage 54, 313 (2011); symmetric, as nilearn ships it; free to use, copy, "
        "change and pass on with the notice of copyright",
        licence="copyright 1993–2009 Louis Collins, MNI, McGill University",
        shown=True,
    ),
}


def terms_of(data_set: str) -> Terms:
    """Return the terms of a data set; those of a set that is not known allow nothing."""
    return TERMS.get(data_set) or Terms(data_set, "not listed here", "", reason="its terms are not known here")
