# chatsft: `make quickstart` shows it at work on any computer, `make test` goes before every commit.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
INSTALLED := $(VENV)/installed
INSTALLED_DEV := $(VENV)/installed-dev
REQUIREMENTS := setup.cfg constraints.txt

# Idle threads sleep: spinning, they slow everything down many times over when another program wants a core.
export OMP_WAIT_POLICY := passive

BASE := recipes/quickstart
RUN := runs/quickstart
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
EVALUATE := $(OFFLINE) $(BIN)/python -m chatsft.eval --tasks Arithmetic --max_problems 200 --max_new_tokens 48 --batch_size 200
CHAT := $(OFFLINE) $(BIN)/python -m chatsft.chat $(RUN) --seed 1 --max_new_tokens 64 --prompt

.PHONY: quickstart test test-slow docs notebooks clean

quickstart: $(INSTALLED)
	@echo "1. 200 sums put to the untrained base model"
	@$(EVALUATE) $(BASE) --output $(RUN)/before.json
	@echo; echo "2. Training: recipes/quickstart.yaml"
	@$(OFFLINE) $(BIN)/python -m chatsft.train recipes/quickstart.yaml output_dir=$(RUN)
	@echo; echo "3. The same sums put to the trained model, none of which it was trained on"
	@$(EVALUATE) $(RUN) --output $(RUN)/after.json
	@echo; echo "4. A chat"
	@for prompt in "Hello!" "What is 123 * 45?" "Spell the word: garden" "Who are you?"; do echo "> $$prompt"; $(CHAT) "$$prompt" || exit 1; done
	@echo; echo "Go on chatting: $(BIN)/python -m chatsft.chat $(RUN)"

test: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q

# The tests of the web page drive Chromium: apt-get install chromium chromium-driver
test-slow: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -q -m "slow and not gpu"

docs: $(INSTALLED_DEV)  # not --quiet, under which --strict sees no warnings
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html"

notebooks: $(INSTALLED_DEV)  # run anew, in clean folders; what they print is stored in them
	$(BIN)/python docs/site/notebooks.py

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): $(REQUIREMENTS)
	@echo "Installing into $(VENV), which takes a few minutes: PyTorch is large"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) .
	@touch $@

$(INSTALLED_DEV): $(REQUIREMENTS)
	@echo "Installing into $(VENV), with what the tests need"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) ".[dev]"
	@touch $@ $(INSTALLED)
