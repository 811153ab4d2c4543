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

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NAME      := $(DATASET)-$(MODEL)
BASE_RUN  := $(RUNS)/$(NAME)-none
DVIB_RUN  := $(RUNS)/$(NAME)-$(DVIB)
# A run is done for a given number of epochs; asking for more continues it, asking for fewer changes nothing.
DONE      := .done$(if $(EPOCHS),-$(EPOCHS))
BASE_OUT  := $(BUNDLES)/$(NAME)-none
DVIB_OUT  := $(BUNDLES)/$(NAME)-$(DVIB)
# A bundle belongs to the run of this length; its stamp lies beside the bundle, which is never edited.
BASE_MADE := $(BUNDLES)/.$(NAME)-none$(DONE)
DVIB_MADE := $(BUNDLES)/.$(NAME)-$(DVIB)$(DONE)
FIT       := $(BIN)/dvib-train fit --resume --model $(MODEL) --dataset $(DATASET) --device $(DEVICE) \
             $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(EPOCHS),--epochs $(EPOCHS))

ifeq ($(DVIB),none)
$(error DVIB names the variant that is compared with the plain model: constant or adaptive)
endif

.PHONY: help setup train export serve bench test lint format clean
.DELETE_ON_ERROR:

help:
	@echo "make setup | train | export | serve | bench | test | lint"
	@echo "variables: MODEL=$(MODEL) DVIB=$(DVIB) DATASET=$(DATASET) DATA_DIR=$(DATA_DIR) DEVICE=$(DEVICE) EPOCHS=$(EPOCHS) HOST=$(HOST) PORT=$(PORT)"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,training,export,service,cpu]'
	$(BIN)/dvib-train fetch
	@touch $@

train: $(BASE_RUN)/$(DONE) $(DVIB_RUN)/$(DONE)

$(BASE_RUN)/$(DONE): | $(INSTALLED)
	$(FIT) --dvib none --out $(BASE_RUN)
	@touch $@

$(DVIB_RUN)/$(DONE): | $(INSTALLED)
	$(FIT) --dvib $(DVIB) --out $(DVIB_RUN)
	@touch $@

export: $(BASE_MADE) $(DVIB_MADE)

$(BASE_MADE): $(BASE_RUN)/$(DONE)
	$(BIN)/dvib-export build $(BASE_RUN) --out $(BASE_OUT) --force
	@touch $@

$(DVIB_MADE): $(DVIB_RUN)/$(DONE) $(BASE_RUN)/$(DONE)
	$(BIN)/dvib-export build $(DVIB_RUN) --out $(DVIB_OUT) --baseline $(BASE_RUN) --force
	@touch $@

serve: export
	$(BIN)/dvib-serve --bundle baseline=$(BASE_OUT) --bundle dvib=$(DVIB_OUT) --host $(HOST) --port $(PORT)

bench: export
	$(BIN)/dvib-bench latency --baseline $(BASE_OUT) --dvib $(DVIB_OUT) --json $(REPORTS)/latency.json
	$(BIN)/dvib-bench training --shape baby --model $(MODEL) --json $(REPORTS)/training.json
	$(BIN)/dvib-bench ranking --shape baby --json $(REPORTS)/ranking.json

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(RUNS) $(BUNDLES) $(REPORTS)
