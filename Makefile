# Everything a fresh machine needs is made here: `make demo` and `make test` do all the set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLUSTER := slurm/devcluster/devcluster.sh
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
# Bytecode is kept, also where the environment says otherwise, as images for containers like to:
# hundreds of processes of the tests would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-slurm test test-quick lint test-slow test-durability test-parity test-gpu gpu-check test-slurm test-chaos clean

demo: $(INSTALLED)
	$(BIN)/batchgen run jobs/demo.yaml

# The same on a development cluster on this machine, which stays up for trying more.
demo-slurm: $(INSTALLED)
	$(CLUSTER) up
	eval "$$($(CLUSTER) env)" && $(BIN)/batchgen run jobs/demo.yaml slurm=devcluster
	@echo
	@echo "The cluster is still up. For Slurm's commands: eval \"\$$($(CLUSTER) env)\""
	@echo "To stop it and delete it: $(CLUSTER) reset"

# Both at once, so that no core waits for the other's work.
test: $(INSTALLED)
	@$(MAKE) --no-print-directory -j2 lint test-quick

# A file stays on one process, so that what its tests share is made once; folders in the order of
# their names, which has the long files first and the many short ones of tests/unit last.
test-quick: $(INSTALLED)
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not slurm and not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Minutes long: kills at each step and at random, memory slopes, scale. CI runs the part that guards
# durability, with further cases of commands, runners and workers.
test-slow: $(INSTALLED)
	$(BIN)/pytest -m "slow and not slurm and not gpu"

test-durability: $(INSTALLED)
	$(BIN)/pytest -n 2 -m "slow and not slurm and not gpu" tests/e2e tests/unit/ledger \
		tests/unit/runner tests/unit/worker tests/unit/cli tests/unit/catalog/test_incremental.py \
		tests/unit/planning/manifests tests/unit/planning/test_plan_damage.py

# Further cases of pixels that must be equal, without those for which a compiler works for minutes;
# and that all benches run, that of a GPU too.
test-parity: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile -m "slow and not slurm and not gpu" \
		tests/parity tests/unit/families tests/unit/engine tests/unit/numerics tests/tiny tests/contract \
		--ignore tests/parity/test_compile.py

# On a machine with CUDA, and nowhere else.
test-gpu: $(INSTALLED)
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or \
		sys.exit("make test-gpu: torch sees no CUDA device here, and these tests need one")'
	$(BIN)/pytest -m gpu tests/gpu

# The same and `batchgen bench gpu`, whatever the tests say: one table and one JSON in
# outputs/bench-gpu, in minutes and without network. Where torch and transformers are there and the
# rest lies beside as wheels: make gpu-check WHEELS=folder. `GPU_BENCH=--tiny` shows that it runs.
GPU_BENCH ?=
ifdef WHEELS
GPU_PYTHON := .venv-gpu/bin/python
$(GPU_PYTHON):
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	$(GPU_PYTHON) -m pip install -q --no-index --no-deps $(WHEELS)/*.whl
else
GPU_PYTHON := $(BIN)/python
$(GPU_PYTHON): $(INSTALLED)
endif

gpu-check: $(GPU_PYTHON)
	-$(GPU_PYTHON) -m pytest -q -m gpu tests/gpu
	$(GPU_PYTHON) -m batchgen bench gpu $(GPU_BENCH)

# On real Slurm clusters, one per test process; as root the packages are installed. Without them the
# tests are skipped and say why. A fake scheduler shows the states that a real one cannot be made to
# show. They wait more than they work: more processes than cores.
test-slurm: $(INSTALLED)
	-$(CLUSTER) install
	$(BIN)/pytest -n 3 -m "slurm and not slow" tests/slurm tests/unit/runner

# Random kills for many minutes.
test-chaos: $(INSTALLED)
	-$(CLUSTER) install
	$(BIN)/pytest -m "slurm and slow" tests/slurm

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "batchgen needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
