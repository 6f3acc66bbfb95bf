# `make demo` and `make test` work from a bare clone: they make .venv themselves, once.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed
export OMP_NUM_THREADS := 1

.PHONY: demo docs test test-all lint install clean

install: $(STAMP)

$(STAMP): pyproject.toml studies/pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" -e "./studies[atari,speech]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/isobatch plan examples/digits.toml --batch-size 128
	$(BIN)/isobatch verify run examples/digits.toml --batch-size 128 --seeds 10 --out out/demo \
		--expect "plan=SAME,lr-only=DIFFERENT,ema-only=DIFFERENT,unscaled=DIFFERENT"
	@echo "open out/demo/report.html"

# the site, in out/site: static files that also open from the disk; warnings are errors
docs: .venv/documents
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --fresh-env docs out/site
	@echo "open out/site/index.html"

.venv/documents: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/pydoclint --quiet src studies/src

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: lint
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf .venv out
