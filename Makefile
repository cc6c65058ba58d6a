# Two commands matter: `make demo` and `make test`. Each target sets up what it needs in .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: help demo test test-slow test-lowest coverage test-examples bench-balance check fmt clean setup

help:
	@echo "make demo       train four tasks on synthetic street data, evaluate, predict a video, export: runs/demo/report.html"
	@echo "make test       the tests that every change must pass (under 15 minutes on 2 cores)"
	@echo "make test-slow  the longer ones: many kills, speed, full trainings"
	@echo "make coverage   the tests with coverage"
	@echo "make test-lowest  the tests with the lowest versions that pyproject.toml allows (needs uv)"
	@echo "make test-examples  the examples in Python, JavaScript and C++ against the package (npm; docs/deployment.md)"
	@echo "                    RUN=runs/demo: on 50 real images, too, with this network and those of PERCEPTION_TEST_DATA"
	@echo "make bench-balance  every balancer on configs/street.yaml and configs/road.yaml, 3 seeds each (a GPU; docs/balancers.md)"
	@echo "make check      ruff, pyright, import-linter"
	@echo "make fmt        format the code"
	@echo "make clean      remove the environment and everything that was built (not runs/)"

setup: .venv/.ready

# The stamp is newer than the pins, or the environment is made anew. Pins only: no addresses. trackers and supervision ask
# for an OpenCV that would overwrite the headless one; the tests of tracking are skipped where they cannot be had.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11 to 3.13 needed: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test,dev]'
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps trackers supervision
	@touch .venv/.ready

demo: .venv/.ready
	$(BIN)/perception demo

# A process for each core, at most four, a thread in each; the tests of a file stay together, for they share networks.
test: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: .venv/.ready
	$(BIN)/python -m pytest -m slow

# Code that tests run in other processes is not counted.
coverage: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	    --cov=perception --cov-report=term:skip-covered --cov-report=xml:coverage.xml

test-lowest:
	uv venv --clear --python 3.11 .venv-lowest
	uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[train,test]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-examples: .venv/.ready
	cd examples/onnxruntime_node && ONNXRUNTIME_NODE_INSTALL_CUDA=skip npm install --ignore-scripts --no-audit --no-fund --no-package-lock
	PERCEPTION_TEST_RUN='$(RUN)' $(BIN)/python -m pytest -rs -m 'slow or not slow' tests/cli/test_examples.py tests/cli/test_examples_run.py

# Goes on where it was interrupted. OPTIONS="--steps 500 --seeds 1 --balancers upgrad,famo" makes it small.
bench-balance: .venv/.ready
	test -f data/street/street.json || $(BIN)/perception data street data/street --count 6000 --seed 0
	$(BIN)/python tools/benchmark_balancers.py configs/street.yaml --page docs/balancers.md $(OPTIONS)
	$(BIN)/python tools/benchmark_balancers.py configs/road.yaml data.root=data --page docs/balancers.md $(OPTIONS)

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fmt: .venv/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-lowest build dist coverage.xml .coverage *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
