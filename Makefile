# Each target sets up what it needs: a fresh clone needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test chaos check check-prometheus check-grafana check-docker check-kubernetes bench dashboards proto format clean

demo: $(STAMP)  ## five nodes on this machine train one model on label-skewed data
	$(BIN)/shoal demo

test: $(STAMP)  ## all tests but the long ones
	$(BIN)/pytest
	@echo "left out: tests/chaos (make chaos), and the images and the demo in compose (make check-docker)"

chaos: $(STAMP)  ## an hour of faults and abuse; needs root, Linux and nft for most of it
	$(BIN)/pytest -s tests/chaos

check: $(STAMP)  ## style, types, layers, and generated code against proto/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/generated.py --check
	$(BIN)/python compose/grafana/build.py --check

check-prometheus:  ## scrape configurations, rules, and that every alert fires; needs promtool
	promtool check config compose/prometheus/prometheus.yml compose/prometheus/http-sd.yml
	promtool test rules compose/prometheus/tests/shoal_test.yml

check-docker: $(STAMP)  ## the images and the demo of compose/, for real; needs Docker, or root and a Debian to install it
	$(BIN)/python compose/check/demo.py

check-kubernetes: $(STAMP)  ## the manifests against the schemas of two Kubernetes versions; needs kubectl and a package index
	$(BIN)/python -m venv build/kubernetes
	build/kubernetes/bin/pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
	for overlay in base gpu monitoring; do \
	    kubectl kustomize compose/kubernetes/$$overlay > build/kubernetes/$$overlay.yaml && \
	    for version in 1.30 1.37; do \
	        build/kubernetes/bin/kubernetes-validate --strict -k $$version build/kubernetes/$$overlay.yaml || exit 1; \
	    done || exit 1; \
	done

check-grafana:  ## the dashboards against Grafana's own types; needs npm and its registry
	compose/check/grafana_schema.sh

bench: $(STAMP)  ## what things cost on this machine, as ratios to what there is to reach
	$(BIN)/shoal bench all

dashboards: $(STAMP)  ## write compose/grafana/dashboards anew from the boards beside it
	$(BIN)/python compose/grafana/build.py

proto: $(STAMP)  ## write node/shoal/v1 anew from proto/, and docs/metrics.md from its table
	$(BIN)/python tests/generated.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group dev -e .
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
