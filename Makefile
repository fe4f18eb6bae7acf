# make demo: a detector trained in minutes. make test: every test. make soak: a training killed 500 times at random moments.
# make results: the studies of docs/results.md. Each begins with make install, into .venv.
# make lowest: every test with the oldest packages that pyproject.toml allows, in .venv-lowest (5 GB).
PYTHON ?= python3

.PHONY: install demo test soak results lowest clean

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

lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n 2 --dist loadfile

.venv-lowest/installed: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev,lite,text]'
	touch $@

clean:
	rm -rf .venv .venv-lowest build *.egg-info
