# `make bench` and `make test` do all the set-up themselves. The environment is made once, and again when what it is made from changes.
VENV := .venv
STAMP := $(VENV)/installed
BIN := $(VENV)/bin

.PHONY: bench bench-full test check clean

bench: $(STAMP)  ## the main job on the embedded data, short: run or resume the budget suite, render the report
	$(BIN)/vitgs-bench sweep --suite budget --profile embedded-short
	$(BIN)/vitgs-bench report

bench-full: $(STAMP)  ## the same in full: all five tasks, three seeds; hours, resumable
	$(BIN)/vitgs-bench sweep --suite budget --profile embedded
	$(BIN)/vitgs-bench report

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

check: $(STAMP)  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## removes the environment; results, reports and checkpoints stay
	rm -rf $(VENV)

$(STAMP): pyproject.toml constraints.txt
	@.ci/environment $(VENV)
	@touch $@
