# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= demo-study
LEAGUE ?= league
RECIPE ?= recipe-study
RATINGS ?= ratings
WORKERS ?= 3

.PHONY: demo test test-avx2 test-mutants test-quantised check format test-faults test-kill test-scale bench-rating bench-intervals bench-ratings bench bench-gpu bench-real-size bench-demo league-quick league recipe docs clean

demo: $(INSTALLED)  ## the whole loop on the embedded tiny world
	$(BIN)/sayso demo $(DEMO)

test: check  ## everything that must hold, in less than 15 minutes
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Every figure that rounding can move, on a processor without bf16 and AVX-512 (most laptops)
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
NUMERICAL := tests/contracts tests/toy tests/test_align.py tests/test_aligners.py tests/test_clip.py \
  tests/test_fit.py tests/test_generate.py tests/test_policy.py tests/test_processes.py \
  tests/test_rewards.py tests/test_tinyworld.py tests/test_tinyworld_weights.py tests/test_train.py

test-avx2: $(INSTALLED)  ## the numerical tests as an AVX2-only processor runs them, two threads
	$(AVX2) OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(NUMERICAL)

check: $(INSTALLED)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-mutants: $(INSTALLED)  ## faults planted in the method's core: which does no test notice?
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mutants]"
	$(BIN)/python benchmarks/planted_faults.py

test-quantised: $(INSTALLED)  ## 4 and 8 bits: frozen weights and AdamW's moments, through bitsandbytes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[quantised]"
	$(BIN)/python -m pytest tests/test_quantised.py

test-faults: $(INSTALLED)  ## 200 damaged files: every repeat ends in the same bits, or in one line
	$(BIN)/python -m pytest tests/test_faults.py --faults 100 --timeout 3600

test-kill: $(INSTALLED)  ## the demo killed 20 times, processes of a launch 40, the rating app 1,000 (PostgreSQL 200)
	$(BIN)/python -m pytest tests/kill/test_kill.py --kills 20 --timeout 3600
	$(BIN)/python -m pytest tests/kill/test_launches.py --launch-kills 40 --timeout 3600
	$(BIN)/python -m pytest tests/kill/test_votes.py --vote-kills 1000 --timeout 7200 -rP

test-scale: $(INSTALLED)  ## align on 100,000 samples and as many captions within 3 GiB
	$(BIN)/python -m pytest tests/scale --scale-rows 100000 --timeout 3600 -rP

BENCHMARKS := rating_page rating_load rating_open export

bench-rating: $(INSTALLED)  ## speed of the rating app: page, load, a large study, a large export
	@failed=0; for name in $(BENCHMARKS); do \
	  $(BIN)/python benchmarks/$$name.py || failed=1; done; exit $$failed

bench-intervals: $(INSTALLED)  ## do intervals and p-values hold where images of a prompt are alike
	$(BIN)/python benchmarks/intervals.py

bench-ratings: $(INSTALLED)  ## how much alignment comes from 250 to 8,600 ratings, ours and the paper's way
	$(BIN)/python benchmarks/ratings.py $(RECIPE) $(RATINGS)

bench: $(INSTALLED)  ## training step, sampling and reward, each against the everyday way, in turns
	$(BIN)/python benchmarks/speed.py

bench-real-size: $(INSTALLED)  ## Stable Diffusion 1.5, 860 M random weights, on a CPU: peak memory against the forecast
	$(BIN)/python benchmarks/real_size.py

bench-gpu: $(INSTALLED)  ## everything that needs a card, in 8 minutes
	$(BIN)/python benchmarks/gpu.py

bench-demo: $(INSTALLED)  ## seconds of each part of the demo
	$(BIN)/python benchmarks/demo.py

league-quick: $(INSTALLED)  ## every aligner on the same ratings with the same budget, one seed: 47 minutes on 2 idle cores with bf16
	$(BIN)/sayso league $(LEAGUE)-quick --quick

league: $(INSTALLED)  ## the same with three seeds and a larger budget: many hours, in as many sittings as you like
	$(BIN)/sayso league $(LEAGUE) --write docs/league.md

recipe: $(INSTALLED)  ## the longer tiny-world recipe, up to 45 minutes on 2 cores
	PATH="$(CURDIR)/$(BIN):$$PATH" sh recipes/lee2023_tiny.sh

docs: $(INSTALLED)  ## write docs/cli.md anew from the commands' own help
	$(BIN)/python docs/make_cli_reference.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .ruff_cache
