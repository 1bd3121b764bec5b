# make demo   set up, segment a real head by text prompts, leave a segmentation and a picture in demo/
# make test   set up, check the style, run the tests
# make view   set up the viewer, and show the demo's result in a browser
# make test-viewer   set up the viewer, run its tests in Chromium
# make results   measure the shipped adapters on test images of the sets in DATA (or ../shared/data), into results/
# make comparison DATA="FOLDER …"   train every method on these sets with equal effort, into comparison/
# make clean  remove what these made

PYTHON ?= python3
# On Linux without an NVIDIA GPU, plain `torch` may bring several GB of CUDA; TORCH chooses another build.
TORCH ?= torch==2.13.0

# How many test cases of each set `make results` measures: all (SUBSET=) take about twice as long.
SUBSET ?= 20

# How many tests run at a time, each with one thread: theirs would wait for each other, and a worker takes 2 GB.
WORKERS ?= 2

# As in engine/__init__.py, for tests that load PyTorch before the engine.
export GOMP_SPINCOUNT ?= 10000

BIN := .venv/bin
READY := .venv/ready
# Slicer's libraries in the viewer are of another version than in the tests of the module.
VIEWER_BIN := .venv-viewer/bin
VIEWER_READY := .venv-viewer/ready

.PHONY: demo test view test-viewer results comparison clean

demo: $(READY)
	$(BIN)/python -m engine.demo -o demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

view: $(VIEWER_READY)
	test -e demo/head.seg.nrrd || $(VIEWER_BIN)/python -m engine.demo -o demo
	$(VIEWER_BIN)/python -m engine.view demo/mni152.nii.gz --segments demo/head.seg.nrrd --adapter head-t1

test-viewer: $(VIEWER_READY)
	$(VIEWER_BIN)/python -m pytest Testing/viewer

results: $(READY)
	$(BIN)/python -m engine.results --data $(or $(DATA),../shared/data) $(if $(SUBSET),--subset $(SUBSET)) -o results

comparison: $(READY)
	$(BIN)/python -m engine.comparison --data $(DATA) -o comparison --epochs 6 --samples-per-epoch 160 --batch-size 8

# open-clip-torch asks for a torchvision that it is not used with here, and that might replace torch.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "open-clip-torch>=3.0"
	touch $(READY)

$(VIEWER_READY): pyproject.toml
	$(PYTHON) -m venv .venv-viewer
	$(VIEWER_BIN)/python -m pip install --quiet "$(TORCH)"
	$(VIEWER_BIN)/python -m pip install --quiet --editable ".[viewer-dev]"
	touch $(VIEWER_READY)

clean:
	rm -rf .venv .venv-viewer demo results .pytest_cache .ruff_cache .hypothesis build *.egg-info
