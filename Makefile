# From nothing to a listening service: make serve. Each target builds what it needs.
PYTHON   ?= python3
VENV     ?= .venv
MODEL    ?= vbpr
DVIB     ?= adaptive
DATASET  ?= ml-100k
DATA_DIR ?=
DEVICE   ?= auto
EPOCHS   ?=
RUNS     ?= runs
BUNDLES  ?= bundles
REPORTS  ?= reports
HOST     ?= 127.0.0.1
PORT     ?= 8000
# Test files that run side by side, each in a process with torch.
JOBS     ?= 2

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NAME      := $(DATASET)-$(MODEL)
RUN       := $(RUNS)/$(NAME)
BASE_RUN  := $(RUN)-none
DVIB_RUN  := $(RUN)-$(DVIB)
# A run is done for a given number of epochs; asking for more continues it, asking for fewer changes nothing.
DONE      := .done$(if $(EPOCHS),-$(EPOCHS))
OUT       := $(BUNDLES)/$(NAME)
BASE_OUT  := $(OUT)-none
DVIB_OUT  := $(OUT)-$(DVIB)
# A bundle belongs to the run of this length; its stamp lies beside the bundle, which is never edited.
MADE      := $(BUNDLES)/.$(NAME)
BASE_MADE := $(MADE)-none$(DONE)
DVIB_MADE := $(MADE)-$(DVIB)$(DONE)
# What the benchmark compares: the plain model, itself with another seed, and both variants of DVIB.
ARMS      := none none-other-seed constant adaptive
ARGUMENTS_none            := --dvib none
ARGUMENTS_none-other-seed := --dvib none --seed 7
ARGUMENTS_constant        := --dvib constant
ARGUMENTS_adaptive        := --dvib adaptive
FIT       := $(BIN)/dvib-train fit --resume --model $(MODEL) --dataset $(DATASET) --device $(DEVICE) \
             $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(EPOCHS),--epochs $(EPOCHS))

ifeq ($(DVIB),none)
$(error DVIB names the variant that is compared with the plain model: constant or adaptive)
endif

.PHONY: help setup train export serve bench bench-training test lint format clean
.DELETE_ON_ERROR:

help:
	@echo "make setup | train | export | serve | bench | bench-training | test | lint"
	@echo "variables: MODEL=$(MODEL) DVIB=$(DVIB) DATASET=$(DATASET) DATA_DIR=$(DATA_DIR) DEVICE=$(DEVICE) EPOCHS=$(EPOCHS) HOST=$(HOST) PORT=$(PORT)"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,training,export,service,cpu]'
	$(BIN)/dvib-train fetch
	@touch $@

train: $(BASE_RUN)/$(DONE) $(DVIB_RUN)/$(DONE)

$(RUN)-%/$(DONE): | $(INSTALLED)
	$(FIT) $(ARGUMENTS_$*) --out $(@D)
	@touch $@

export: $(BASE_MADE) $(DVIB_MADE)

$(MADE)-%$(DONE): $(RUN)-%/$(DONE) $(BASE_RUN)/$(DONE)
	$(BIN)/dvib-export build $(<D) --out $(OUT)-$* $(if $(findstring none,$*),,--baseline $(BASE_RUN)) --force
	@touch $@

# A run and its bundle are kept for the next time, though nothing names them but a pattern.
.SECONDARY:

serve: export
	$(BIN)/dvib-serve --bundle baseline=$(BASE_OUT) --bundle dvib=$(DVIB_OUT) --host $(HOST) --port $(PORT)

# All parts run, whatever one of them says; the exit code is the verdict's, or that of a part that could not be measured.
bench: $(ARMS:%=$(MADE)-%$(DONE))
	@status=0; part=0; set -x; \
	$(BIN)/dvib-bench latency --baseline $(BASE_OUT) --dvib $(OUT)-constant --dvib $(OUT)-adaptive \
	  --other-seed $(OUT)-none-other-seed --checkpoint $(RUN)-adaptive --json $(REPORTS)/latency.json || status=$$?; \
	$(BIN)/dvib-bench stages $(DVIB_OUT) --json $(REPORTS)/stages.json || part=$$?; \
	$(BIN)/dvib-bench load $(BASE_OUT) --dvib $(DVIB_OUT) --json $(REPORTS)/load.json || part=$$?; \
	$(BIN)/dvib-bench growth --json $(REPORTS)/growth.json || part=$$?; \
	$(BIN)/dvib-bench peers $(DVIB_OUT) --json $(REPORTS)/peers.json || part=$$?; \
	$(BIN)/dvib-bench all-users --shape sports --json $(REPORTS)/all-users.json || part=$$?; \
	$(BIN)/dvib-bench report $(REPORTS) || part=$$?; \
	[ $$status -ne 0 ] && exit $$status || exit $$part

bench-training: $(INSTALLED)
	$(BIN)/dvib-bench training --shape baby --model $(MODEL) --json $(REPORTS)/training.json
	$(BIN)/dvib-bench ranking --shape baby --json $(REPORTS)/ranking.json

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(RUNS) $(BUNDLES) $(REPORTS)
