# Everything happens in .venv; `make help` lists the targets.
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check
SOURCES := quantlib components pipelines tests benchmarks
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test quality style compile benchmark clean
.PHONY: images push-images sbom lint-images test-containers

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt scripts/install.sh
	bash scripts/install.sh $(VENV)
	@touch $@

demo: $(STAMP) ## Quantize SmolLM2-135M through the compiled pipeline, validate it with vLLM, publish it
	$(PYTHON) scripts/demo.py

test: $(STAMP) ## Run all tests
	$(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

quality: $(STAMP) ## Check style, types and generated files
	$(VENV)/bin/ruff check $(SOURCES) scripts
	$(VENV)/bin/ruff format --check $(SOURCES) scripts
	$(VENV)/bin/mypy
	$(PYTHON) -m components --check
	$(PYTHON) scripts/reference.py --check
	$(PYTHON) scripts/image_requirements.py --check
	$(VENV)/bin/actionlint

style: $(STAMP) ## Fix what can be fixed by itself
	$(VENV)/bin/ruff check --fix $(SOURCES) scripts
	$(VENV)/bin/ruff format $(SOURCES) scripts
	$(PYTHON) -m components
	$(PYTHON) scripts/reference.py
	$(PYTHON) scripts/image_requirements.py

compile: $(STAMP) ## Compile the Kubeflow pipeline to build/pipeline.yaml
	$(PYTHON) -m pipelines compile --output build/pipeline.yaml

benchmark: $(STAMP) ## Compare with llm-compressor and hqq, side by side (about an hour)
	$(PYTHON) benchmarks/peers.py

# REGISTRY=registry.example/team, BASE_IMAGE, TORCH=cpu, TORCH_INDEX, WHEELS, VLLM: scripts/images.py.
DOCKER ?= docker
images push-images: IMAGE_OPTIONS := --docker $(DOCKER) \
	$(if $(REGISTRY),--registry $(REGISTRY)) $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE)) \
	$(if $(TORCH),--torch $(TORCH)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) \
	$(if $(WHEELS),--wheels $(WHEELS)) $(if $(VLLM),--vllm $(VLLM))

images: ## Build the container images; writes build/images.lock.json
	python3 scripts/images.py build $(IMAGE_OPTIONS)

push-images: ## Push the images to REGISTRY; the lock then names them by digest
	python3 scripts/images.py push $(IMAGE_OPTIONS)

sbom: ## Write what is in the images to build/sbom, as CycloneDX
	python3 scripts/sbom.py --docker $(DOCKER)

lint-images: $(STAMP) ## Check the Dockerfiles
	$(VENV)/bin/hadolint images/*/Dockerfile

test-containers: $(STAMP) ## Build the images for CPUs and run SmolLM2 through the pipeline in them
	bash scripts/test_containers.sh

clean: ## Remove what the other targets made
	rm -rf build $(VENV) .quantlib *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
