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

# Two runs at once, each on one core; after an interruption the same command goes on. RUNS keeps the run folders, PAGES gets
# the tables and pictures.
RUNS := runs/results
PAGES := docs/results
DNDETR := .venv/bin/dndetr
STUDY := --seeds 3 --jobs 2
SHORT := train.epochs=6 train.drop_epoch=1000 data.workers=0

results: install
	$(DNDETR) ablate components --preset dn-deform-tiny $(STUDY) --out $(RUNS)/components $(SHORT)
	$(DNDETR) ablate groups --preset dn-deform-tiny $(STUDY) --out $(RUNS)/groups $(SHORT)
	$(DNDETR) known-objects --split 0.7 $(STUDY) --out $(RUNS)/known-objects-0.7 $(SHORT)
	for seed in 0 1 2; do $(DNDETR) known-labels --ckpt $(RUNS)/components/box-label-mask/seed-$$seed --epochs 2 \
	  --out $(RUNS)/known-labels-$$seed data.workers=0 || exit; done
	for what in is curves "anchors --images 1"; do $(DNDETR) analyze $$what --ckpt $(RUNS)/groups/5-groups/seed-0 \
	  --ckpt $(RUNS)/groups/no-group/seed-0 --out $(PAGES)/matching || exit; done
	for study in components groups known-objects-0.7 known-labels-0 known-labels-1 known-labels-2; do \
	  mkdir -p $(PAGES)/$$study && cp $(RUNS)/$$study/*.md $(PAGES)/$$study || exit; \
	  cp $(RUNS)/$$study/*.csv $(RUNS)/$$study/*.png $(PAGES)/$$study 2>/dev/null || true; \
	done

clean:
	rm -rf .venv build *.egg-info
