# Every target sets up .venv by itself; nothing outside this folder is changed but the
# caches of pip and Keras.
PYTHON ?= python3
BIN := .venv/bin
# On JAX a process grows to four gigabytes, and compiling takes most of its time:
# `make test-all` compiles as users do.
PARALLEL := --numprocesses auto --maxprocesses 2
# Debian's package lists and downloads are kept apart from the system's.
APT := apt-get -qq -o Dir::State=$(CURDIR)/data/apt -o Dir::Cache=$(CURDIR)/data/apt \
       -o Debug::NoLocking=1 -o APT::Sandbox::User=

.PHONY: train test test-all test-torch versions audit lint notebooks table docs clean

train: .venv/user.stamp data/ready.stamp  # train the recommended run on Fashion-MNIST
	$(BIN)/python train.py $(ARGS)

test: .venv/dev.stamp data/ready.stamp  # all tests but the slow, on TensorFlow and on JAX
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q $(PARALLEL) -m 'not slow'
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 KERAS_BACKEND=jax \
	  $(BIN)/python -m pytest -q $(PARALLEL) -m 'not slow'

test-all: .venv/dev.stamp data/ready.stamp  # the slow ones, too: training killed 20 times
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q $(PARALLEL)
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q $(PARALLEL)

test-torch: .venv-torch/stamp  # the same as make test on PyTorch, where no TensorFlow is
	KERAS_BACKEND=torch .venv-torch/bin/python -m pytest -q $(PARALLEL) -m 'not slow'

versions:  # the quick tests with the lowest and the newest versions
	$(PYTHON) benchmarks/versions.py

audit: .venv/dev.stamp  # known vulnerabilities of what is installed; asks PyPI
	$(BIN)/python -m pip install --quiet pip-audit==2.10.1
	$(BIN)/pip-audit --local --skip-editable

lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Two conversions: outputs cannot be hidden in the one that makes them.
notebooks: .venv/dev.stamp data/ready.stamp # execute every notebook from its .py
	cd notebooks && for script in [0-9]*.py; do \
	  notebook="$${script%.py}.ipynb"; convert="../$(BIN)/jupyter nbconvert --inplace"; \
	  ../$(BIN)/jupytext --to ipynb --update "$$script" \
	  && $$convert --to notebook --execute "$$notebook" \
	    --ExecutePreprocessor.record_timing=False \
	  && $$convert --to notebook --TagRemovePreprocessor.enabled=True \
	    --TagRemovePreprocessor.remove_all_outputs_tags="['hide-output']" "$$notebook" \
	  || exit 1; done

table: .venv/dev.stamp  # write the tables of all pages from train.py and the results
	$(BIN)/python benchmarks/table.py

docs: .venv/dev.stamp  # write docs/reference/index.html: every public name, searchable
	PDOC_ALLOW_EXEC=1 $(BIN)/pdoc --docformat google --template-directory docs/template \
	  --output-directory docs/reference recipes callbacks

clean:
	rm -rf .venv .venv-torch runs docs/reference

.venv/user.stamp: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev.stamp: .venv/user.stamp
	$(BIN)/python -m pip install --quiet -r requirements.txt -e '.[dev]'
	touch $@

# PyTorch for the CPU: on Linux, the one from PyPI brings gigabytes for GPUs.
.venv-torch/stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-torch
	grep -v tensorflow requirements.txt | .venv-torch/bin/python -m pip install --quiet \
	  --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
	  -r /dev/stdin -e '.[dev]'
	touch $@

# Keras downloads the data, or finds them on this machine. Where it cannot, the Debian
# package is unpacked here. Where neither can be had, training uses drawn garments.
data/ready.stamp: | .venv/user.stamp
	@mkdir -p data/apt/lists/partial data/apt/archives/partial
	@if TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -c \
	  'from recipes.fashion_mnist import load; load("data/fashion-mnist")' \
	  >data/keras.log 2>&1; \
	then echo 'Fashion-MNIST: found or downloaded by Keras.'; touch $@; \
	elif { $(APT) update && cd data && $(APT) download dataset-fashion-mnist \
	  && dpkg-deb -x dataset-fashion-mnist_*.deb unpacked \
	  && { [ ! -e fashion-mnist ] || mv fashion-mnist fashion-mnist.$$(date +%s); } \
	  && mv unpacked/usr/share/datasets/fashion-mnist . \
	  && rm -rf apt unpacked *.deb; } >data/apt.log 2>&1; \
	then echo 'Fashion-MNIST: unpacked from the Debian package.'; touch $(CURDIR)/$@; \
	else echo 'Fashion-MNIST cannot be had: see data/keras.log and data/apt.log.'; fi
