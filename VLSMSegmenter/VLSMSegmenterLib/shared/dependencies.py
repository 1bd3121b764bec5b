"""What the engine needs in a Python, what of it is there, and how the rest comes into Slicer's own. Knows no Qt.

Nothing is installed unless `install` is called. Slicer's own numpy, SimpleITK and VTK are never replaced: pip is
told to keep them, and they are looked at again afterwards.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError

TORCH = "torch"
PROTECTED = ("numpy", "SimpleITK", "vtk")  # Slicer's own
CUDA_MEGABYTES, PLAIN_TORCH_MEGABYTES = 2500, 200  # of PyTorch with and without what NVIDIA's GPUs need
REQUESTER = "VLSM Segmenter"


@dataclass(frozen=True)
class Package:
    """A package that the engine's process imports.

    Attributes:
        module: the name to import.
        requirement: what pip is asked for, as in pyproject.toml.
        megabytes: about how much is downloaded, with what it needs itself.
    """

    module: str
    requirement: str
    megabytes: float

    @property
    def name(self) -> str:
        return re.split("[<>=]", self.requirement)[0]

    @property
    def lowest(self) -> str:
        return self.requirement.rpartition("=")[2]


# Sizes are estimates; systems differ little, but for torch (see `megabytes_of`).
PACKAGES = (
    Package("torch", "torch>=2.10", PLAIN_TORCH_MEGABYTES),
    Package("transformers", "transformers>=5.0", 20),
    Package("safetensors", "safetensors>=0.5", 0.5),
    Package("huggingface_hub", "huggingface_hub>=1.0", 5),
    Package("numpy", "numpy>=1.26", 17),
    Package("SimpleITK", "SimpleITK>=2.4", 53),
    Package("pydicom", "pydicom>=3.0", 3),
    Package("PIL", "pillow>=10", 7),
    Package("rich", "rich>=13.7", 2),
    Package("fastapi", "fastapi>=0.115", 4),
    Package("uvicorn", "uvicorn>=0.30", 0.3),
    Package("psutil", "psutil>=5.9", 0.3),
    # for trainings
    Package("accelerate", "accelerate>=1.0", 0.4),
    Package("monai", "monai>=1.4", 1.7),
    Package("yaml", "PyYAML>=6.0", 0.8),
    Package("openpyxl", "openpyxl>=3.1", 0.3),
    Package("scipy", "scipy>=1.11", 36),
    Package("tensorboard", "tensorboard>=2.17", 14),
    Package("matplotlib", "matplotlib>=3.8", 16),
)


@dataclass(frozen=True)
class Report:
    """What a Python has of what the engine needs.

    Attributes:
        python: its version.
        versions: of the packages that are there, by name; "" where a package does not say.
        gpu: the GPU that PyTorch sees in it, "" where it sees none or is not there.
        torch_error: why PyTorch, which is there, cannot be loaded.
    """

    python: str
    versions: dict[str, str]
    gpu: str = ""
    torch_error: str = ""

    @property
    def missing(self) -> list[Package]:
        """Return what is not there, or too old."""
        return [p for p in PACKAGES if p.name not in self.versions or self.is_too_old(p)]

    def is_too_old(self, package: Package) -> bool:
        version = self.versions.get(package.name)
        return bool(version) and _release(version) < _release(package.lowest)

    def describe(self, nvidia: bool) -> str:
        """Say what is there, what is missing, and how much would be downloaded.

        Args:
            nvidia: PyTorch would come with what NVIDIA's GPUs need.
        """
        there = [f"{name} {version}".strip() for name, version in self.versions.items()]
        lines = [f"Python {self.python} has {', '.join(there) or 'none of the packages'}."]
        if TORCH in self.versions:
            lines.append(self._describe_torch())
        if not self.missing:
            return "\n".join([*lines, "Everything that the engine needs is there."])
        wanted = [f"{p.requirement}{self._instead(p)} ({size(megabytes_of(p, nvidia))})" for p in self.missing]
        total = sum(megabytes_of(p, nvidia) for p in self.missing)
        lines.append(f"Missing: {', '.join(wanted)}. In all {size(total)} to download. Nothing has been installed.")
        return "\n".join(lines)

    def _describe_torch(self) -> str:
        if self.torch_error:
            return f"PyTorch is there but cannot be loaded ({self.torch_error}); uninstall it, and install it anew."
        return f"PyTorch sees the GPU {self.gpu}." if self.gpu else "PyTorch sees no GPU and uses the CPU."

    def _instead(self, package: Package) -> str:
        return f" instead of {self.versions[package.name]}" if self.is_too_old(package) else ""


@dataclass(frozen=True)
class Installer:
    """How packages come into Slicer's own Python.

    Attributes:
        torch: installs PyTorch as a requirement such as ">=2.10" wants it; None without the PyTorch extension.
        others: installs requirements, kept to a file of constraints.
    """

    torch: Callable[[str], object] | None
    others: Callable[[list[str], Path], object]


def needs_nvidia(installer: Installer) -> bool:
    """Return whether PyTorch would come with what NVIDIA's GPUs need: the PyTorch extension looks for such a GPU;
    plain pip brings it on Linux in any case, and nowhere else."""
    if installer.torch is None:
        return sys.platform == "linux"
    return shutil.which("nvidia-smi") is not None


def megabytes_of(package: Package, nvidia: bool) -> float:
    return CUDA_MEGABYTES if package.name == TORCH and nvidia else package.megabytes


def size(megabytes: float) -> str:
    """Return a size in words; it is never exact."""
    return f"about {megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"about {max(1, round(megabytes))} MB"


def slicers_installer() -> Installer:
    """Return what this Slicer installs packages by. Nothing is imported that is not there already, but the PyTorch
    extension's own module, which loads no torch."""
    import slicer
    import slicer.util

    torch = None
    if importlib.util.find_spec("PyTorchUtils"):
        from PyTorchUtils import PyTorchUtilsLogic

        def torch(requirement: str) -> object:
            return PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=requirement)

    packaging = getattr(slicer, "packaging", None)  # from Slicer 5.12 on
    if packaging is not None and hasattr(packaging, "pip_ensure"):

        def others(requirements: list[str], constraints: Path) -> None:
            from packaging.requirements import Requirement

            wanted = [Requirement(text) for text in requirements]
            slicer.packaging.pip_ensure(
                wanted, constraints=str(constraints), prompt_install=False, requester=REQUESTER
            )
    else:

        def others(requirements: list[str], constraints: Path) -> None:
            slicer.util.pip_install([*requirements, "--constraint", str(constraints)])

    return Installer(torch, others)


def install(missing: Sequence[Package], installer: Installer) -> str:
    """Install packages into Slicer's own Python, in which this runs; return what was done, in words.

    To be called in the main thread, once the user has agreed: Slicer shows its own progress meanwhile.

    Raises:
        UserError: one of them is Slicer's own and too old, or pip failed, or replaced what it must not.
    """
    own = [package.name for package in missing if package.name in PROTECTED]
    if own:
        raise UserError(
            f"this Slicer's {', '.join(own)} is too old, and must not be replaced; get Slicer 5.10 or later"
        )
    before = protected_versions()
    torch = next((p for p in missing if p.name == TORCH), None)
    others = [p.requirement for p in missing if p is not torch or installer.torch is None]
    with _constraints(before) as path:
        try:
            if torch and installer.torch:
                installer.torch(torch.requirement.removeprefix(TORCH))
            if others:
                installer.others(others, path)
        except Exception as error:  # pip, Slicer and the extension raise errors of many kinds
            raise UserError(f"installing failed ({error}); see Slicer's log, and try again") from error
    changed = [name for name, version in protected_versions().items() if version != before[name]]
    if changed:
        raise UserError(f"{', '.join(changed)} of Slicer was replaced against all orders; install Slicer again")
    return f"Installed {', '.join(package.name for package in missing)}."


def protected_versions() -> dict[str, str]:
    """Return the versions of what is Slicer's own, by the names to install; "" where pip knows of none."""
    importlib.invalidate_caches()
    versions = {}
    for name in PROTECTED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return versions


def constraints(versions: dict[str, str]) -> str:
    """Return the lines by which pip keeps what is there; what it does not know of it must not install at all."""
    return "".join(f"{name}=={version}\n" if version else f"{name}<0\n" for name, version in versions.items())


@contextmanager
def _constraints(versions: dict[str, str]) -> Iterator[Path]:
    """Yield a file of constraints that every pip heeds meanwhile, also that of the PyTorch extension."""
    before = os.environ.get("PIP_CONSTRAINT")
    with tempfile.TemporaryDirectory(prefix="vlsm-") as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text(constraints(versions), encoding="utf-8")
        os.environ["PIP_CONSTRAINT"] = path.as_uri()  # pip splits it at spaces, which a URI has not
        try:
            yield path
        finally:
            if before is None:
                del os.environ["PIP_CONSTRAINT"]
            else:
                os.environ["PIP_CONSTRAINT"] = before


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version: (2, 13, 0) for "2.13.0+cpu"."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers.group().split("."))) if numbers else ()
