# make demo: a detector trained in minutes. make test: every test. Both begin with make install, into .venv.
PYTHON ?= python3

.PHONY: install demo test clean

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
	.venv/bin/pytest

clean:
	rm -rf .venv build *.egg-info
