# make demo: a detector trained in minutes. make test: every test. make soak: a training killed 500 times at random moments.
# make results: the studies of docs/results.md. Each begins with make install, into .venv.
PYTHON ?= python3

.PHONY: install demo test soak results clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable '.[dev,lite]'
	touch $@

demo: install
	.venv/bin/dndetr train --preset dn-deform-tiny

test: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile

soak: install
	DNDETR_SOAK=500 .venv/bin/pytest -s tests/training/test_kills.py -k random

results: install
	.venv/bin/pip install --quiet --editable '.[text]'
	benchmarks/results.sh

clean:
	rm -rf .venv build *.egg-info
