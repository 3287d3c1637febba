# Everything happens in .venv; `make help` lists the targets.
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
SOURCES := quantlib components pipelines tests benchmarks
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test-tools test quality style lock compile benchmark benchmark-schemes clean
.PHONY: images push-images sbom lint-images test-containers

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# TORCH=cpu or cuda, TORCH_INDEX, INSTALLER=pip, PYTHON: scripts/install.sh, which makes the stamp.
install: ## Install everything into .venv
	bash scripts/install.sh $(VENV)

$(STAMP): pyproject.toml requirements.lock scripts/install.sh scripts/requirements.py
	bash scripts/install.sh $(VENV)

demo: $(STAMP) ## Quantize SmolLM2-135M through the workflow, validate it with vLLM, publish it
	$(VENV_PYTHON) scripts/demo.py

# A registry of images, and what reads it without code of ours; an MLflow server, in an environment of
# its own. Tests that need them are skipped without them.
test-tools: $(STAMP) ## Install the servers that some tests talk to into .venv; needs Go
	GOBIN=$(abspath $(VENV)/bin) go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2
	GOBIN=$(abspath $(VENV)/bin) go install github.com/google/go-containerregistry/cmd/crane@v0.22.1
	$(VENV_PYTHON) -m venv $(VENV)/mlflow && $(VENV)/mlflow/bin/pip install --quiet mlflow==3.17.2

test: $(STAMP) ## Run all tests
	$(VENV_PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

quality: $(STAMP) ## Check style, types and generated files
	$(VENV)/bin/ruff check $(SOURCES) scripts
	$(VENV)/bin/ruff format --check $(SOURCES) scripts
	$(VENV)/bin/mypy
	$(VENV_PYTHON) -m components --check
	$(VENV_PYTHON) scripts/reference.py --check
	$(VENV_PYTHON) scripts/requirements.py check
	$(VENV)/bin/actionlint

style: $(STAMP) ## Fix what can be fixed by itself
	$(VENV)/bin/ruff check --fix $(SOURCES) scripts
	$(VENV)/bin/ruff format $(SOURCES) scripts
	$(VENV_PYTHON) -m components
	$(VENV_PYTHON) scripts/reference.py

lock: $(STAMP) ## Write requirements.lock; UPGRADE=boto3 renews a package, UPGRADE= all of them
	$(VENV_PYTHON) scripts/requirements.py lock $(if $(filter-out undefined,$(origin UPGRADE)),--upgrade $(UPGRADE))

compile: $(STAMP) ## Compile the Kubeflow pipeline to build/pipeline.yaml
	$(VENV_PYTHON) -m quantlib compile --output build/pipeline.yaml

benchmark: $(STAMP) ## Compare with llm-compressor and hqq, side by side (about an hour)
	$(VENV_PYTHON) benchmarks/peers.py

benchmark-schemes: $(STAMP) ## Compare every scheme with three other tools (long; it goes on where it was stopped)
	$(VENV_PYTHON) benchmarks/schemes.py

# REGISTRY=registry.example/team, BASE_IMAGE, TORCH=cpu, TORCH_INDEX, WHEELS: scripts/images.py.
DOCKER ?= docker
images push-images: IMAGE_OPTIONS := --docker $(DOCKER) \
	$(if $(REGISTRY),--registry $(REGISTRY)) $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE)) \
	$(if $(TORCH),--torch $(TORCH)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) \
	$(if $(WHEELS),--wheels $(WHEELS))

images: ## Build the container images; writes build/images.lock.json
	python3 scripts/images.py build $(IMAGE_OPTIONS)

push-images: ## Push the images to REGISTRY; the lock then names them by digest
	python3 scripts/images.py push $(IMAGE_OPTIONS)

SYFT ?= syft
sbom: ## Write what is in the images to build/sbom, as CycloneDX, by syft
	python3 scripts/images.py sbom --syft $(SYFT)

lint-images: $(STAMP) ## Check the Dockerfiles
	$(VENV)/bin/hadolint images/Dockerfile

test-containers: $(STAMP) ## Build the images for CPUs and run SmolLM2 through the pipeline in them
	bash scripts/test_containers.sh

clean: ## Remove what the other targets made
	rm -rf build $(VENV) .quantlib *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
