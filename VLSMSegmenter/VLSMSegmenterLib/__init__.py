"""What the Slicer module is made of. Imports Slicer and the client's side of the engine, never torch.

shared/          what knows no window: for the panel, Slicer's console and the page in a browser
  volumes.py       a volume node's voxels and grid, as the engine wants them, and back
  segmentations.py segmentation nodes: written segment by segment, others untouched
  terminology.py   SNOMED codes of prompts, from Slicer's own lists
  words.py         prompts from text, and results in words
  worker.py        jobs in threads, whose news arrive where Slicer may be touched
  dependencies.py  what the engine needs in a Python, and how it comes into Slicer's own
  engines.py       where the engine runs: a process of this machine, or a server elsewhere
  findings.py      what is asked for, and what was found
  choices.py       what can be chosen for a run
  logic.py         all of these together, for Python
  labels.py        volumes with what is labelled in them
  training.py      adapters from these
panel/           the same for the mouse, in Slicer alone
  panel.py         what is asked, the run, its results
  setup_section.py chooses the engine and installs what it lacks
  adapter_section.py looks after adapters, by library.py
  training_section.py trains
  parameters.py    what is chosen, kept in the scene
  history.py       prompts that were used before
  remembered.py    what is chosen in the panel comes back
"""

import sys
from pathlib import Path

# An installed module has the engine beside it; in the repository it is one folder further up. It comes before an
# engine that was installed by itself, which may be of another version.
_ROOTS = [folder for folder in Path(__file__).resolve().parents[1:3] if (folder / "engine" / "client").is_dir()]
if _ROOTS and str(_ROOTS[0]) not in sys.path:
    sys.path.insert(0, str(_ROOTS[0]))
