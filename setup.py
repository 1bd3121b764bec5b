"""What a package holds beside the engine. In the repository it lies beside it, in a package inside (see
`engine.models.places.shipped`). All else is in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

MODELS = [card.parent for card in Path("Resources/Models").glob("*/card.json")]
PAGE = ["viewer", "viewer/static", "VLSMSegmenterLib", "VLSMSegmenterLib/shared"]
BESIDE = {
    ".".join(["engine", *folder.parts]): folder.as_posix()
    for folder in [*MODELS, *(Path("VLSMSegmenter", part) for part in PAGE)]
}

setup(
    packages=[*find_packages(include=["engine*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={package: ["*"] for package in BESIDE},
)
