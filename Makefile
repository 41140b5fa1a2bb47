# Two commands are all a newcomer needs: `make demo`, then `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := orthanc orthanc-dicomweb dcmtk dicom3tools libpixelmed-java default-jdk-headless strace postgresql prometheus rsyslog rsyslog-openssl cpio gcc libc6-dev

.PHONY: demo test test-gpu faults mutants lint peers bench-batch bench-node bench-audit bench-engines bench-gpu bench-paper bench-train lock sbom clean

demo: $(VENV)/core
	$(BIN)/python deploy/demo/demo.py demo-out

# three processes: the tests wait for other processes half of the time
test: lint peers
	$(BIN)/python -m pytest -n 3 --dist loadgroup

# on a machine with an NVIDIA GPU: takes an hour, most of it soaks
test-gpu: $(VENV)/pycuda
	CXRNODE_SOAK_S=$${CXRNODE_SOAK_S:-1800} PYTHONPATH=$(VENV)/pycuda $(BIN)/python -m pytest -m gpu -s \
	  tests/gpu tests/contract/test_engine.py

# trouble around a node under load: databases, disks, clocks, destinations, power; three quarters of an hour. With
# nothing else running. One of them: .venv/bin/python -m tests.trouble no_inodes; two hours of load: ... soak
faults: $(VENV)/dev peers
	$(BIN)/python -m tests.trouble

# what no test would notice; half an hour with nothing else running (see tests/mutants/README.md)
mutants: $(VENV)/dev
	$(BIN)/python -m tests.mutants

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The real peers that the interop tests talk to. Where they cannot be installed, those tests are skipped, loudly;
# CXRNODE_REQUIRE=interop turns the skips into failures.
peers:
	@missing=$$(for p in $(PEERS); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  if ! command -v apt-get >/dev/null; then echo "no apt-get: interop tests will be skipped; they want" $$missing; \
	  else run=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
	    { $$run apt-get update -q && DEBIAN_FRONTEND=noninteractive $$run apt-get install -yq --no-install-recommends $$missing; } \
	    || echo "cannot install" $$missing ": interop tests will be skipped"; fi; fi

# pair it with nothing else running: it times
bench-batch: $(VENV)/dev
	$(BIN)/python -m tests.bench.batch

# with nothing else running, and Orthanc and DCMTK installed (make peers)
bench-node: $(VENV)/dev peers
	$(BIN)/python -m tests.bench.receive
	$(BIN)/python -m tests.bench.node
	$(BIN)/python -m tests.bench.delivery

# a million records of the ledger, in a temporary folder (1 GB)
bench-audit: $(VENV)/dev
	$(BIN)/python -m tests.bench.audit

bench-engines: $(VENV)/dev
	$(BIN)/python -m tests.bench.engines_cpu

bench-gpu: $(VENV)/pycuda
	PYTHONPATH=$(VENV)/pycuda $(BIN)/python -m tests.bench.gpu

bench-paper: $(VENV)/dev
	$(BIN)/python -m tests.bench.paper

bench-train: $(VENV)/dev
	$(BIN)/python -m tests.bench.train

# What is installed is what the locks pin, by hash; the project itself, which needs no more, comes after.
$(VENV)/core: pyproject.toml requirements.lock deploy/demo/requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r requirements.lock -r deploy/demo/requirements.lock
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

$(VENV)/dev: $(VENV)/core requirements-dev.lock
	$(BIN)/python -m pip install -q --require-hashes -r requirements-dev.lock
	touch $@

# The locks hold for every platform and every Python that pyproject.toml allows. What they pin stays as long as
# pyproject.toml allows it; `make lock UPGRADE=--upgrade` takes what is newest.
LOCK = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --custom-compile-command 'make lock' $(UPGRADE)
lock: $(VENV)/dev
	$(LOCK) --extra postgres -o requirements.lock
	$(LOCK) --extra dev --extra train -c requirements.lock -o requirements-dev.lock

# the software bill of materials of the node, CycloneDX
sbom: $(VENV)/dev
	mkdir -p dist
	$(BIN)/python -m deploy.sbom dist/sbom.json

# pycuda from source, with NVIDIA's headers from PyPI: no CUDA toolkit is wanted
$(VENV)/pycuda: $(VENV)/dev
	test -d $@ || $(BIN)/python -m tests.support.pycuda_build $@
	touch $@

clean:
	rm -rf $(VENV) demo-out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
