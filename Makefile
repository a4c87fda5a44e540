# Every target sets up what it needs first: `make demo` and `make test` work right after `git clone`.
.DEFAULT_GOAL := help
.PHONY: help setup demo compare curate-demo test mutations fuzz-grader test-compose test-gpu test-trackers harness lint format bench protobuf openapi sbom clean
PY := .venv/bin/python

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install everything into .venv: PRISM, its services on a CPU, and what the tests need
	@scripts/setup dev

demo: ## the whole of PRISM on this machine's CPU: SFT, alignment, RLVR over live services, and a report
	@scripts/setup demo
	@.venv/bin/prism demo $(ARGS)

compare: ## the demo beside its baseline and its control, over several seeds, in one table
	@scripts/setup demo
	@.venv/bin/prism demo --compare $(ARGS)

curate-demo: ## curate demonstrations for the demo from a teacher that errs, and align its SFT policy on them
	@scripts/setup demo
	@$(PY) -m bench.curation.demo $(ARGS)

test: lint ## lint, types, then all tests (make test ARGS=tests/unit for some)
	$(PY) -m pytest $(ARGS)

mutations: setup ## break precious lines, one at a time, and see that a test fails for each (a few minutes)
	$(PY) tests/mutate.py $(ARGS)

fuzz-grader: setup ## change one thing in right answers, 10,000 of each kind: the grader may reward none (half an hour, most of it math)
	$(PY) -m bench.mutants $(ARGS)

test-compose: setup ## docker compose up for real, with every part killed on the way (needs Docker; ten minutes and more)
	$(PY) -m pytest tests/compose $(ARGS)

test-gpu: ## what only GPUs can show, learners and weights over NCCL (needs two, a torch that has CUDA, and vLLM)
	$(PY) -m pytest tests/gpu $(ARGS)

test-trackers: setup ## what TensorBoard, MLflow and Weights & Biases hold after `prism track`, in an environment of its own
	python3.11 -m venv .venv-trackers
	$(PY) -c 'import site; print(site.getsitepackages()[0])' > .venv-trackers/lib/python3.11/site-packages/checkout.pth
	.venv-trackers/bin/pip install --quiet tensorboard wandb mlflow-skinny
	PYTHONPATH=$(CURDIR) .venv-trackers/bin/python -m pytest tests/trackers $(ARGS)

harness: setup ## lmms-eval and VLMEvalKit for real over our policy service and harness/, in environments of their own (5 GiB)
	scripts/setup-harness .venv-harness lmms-eval==0.7.3 levenshtein "filelock<4"
	scripts/setup-harness .venv-vlmevalkit ms-vlmeval==0.0.20
	PRISM_LMMS_EVAL=.venv-harness/bin/lmms-eval PRISM_VLMEVALKIT=.venv-vlmevalkit/bin/python $(PY) -m pytest tests/harness $(ARGS)

lint: setup ## ruff, import directions, pyright
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo --no-cache
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright

format: setup ## format the code and sort its imports
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup ## the figures of the platform; of its parts: python -m bench.experts, bench.grader, bench.learner, bench.pushes, bench.step, bench.inflight, bench.checkpoints, bench.kills, bench.soak, bench.curation.speed, .kills, .errors, bench.evaluation.rate, .every
	$(PY) -m bench $(ARGS)

protobuf: setup ## regenerate prism/wire/v1 from proto/
	scripts/generate-protobuf

openapi: setup ## regenerate proto/openapi from the services
	$(PY) scripts/export-openapi

sbom: setup ## a bill of materials of .venv, CycloneDX JSON, in dist/
	@scripts/sbom $(ARGS)

clean: ## remove runs/ (reports, checkpoints) and caches; .venv stays
	rm -rf runs .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
