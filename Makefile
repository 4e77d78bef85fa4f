# `make demo` and `make test` each do all their own set-up in .venv; nothing else is needed but Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL_VENV := .venv-wheel
# One thread for each of the test processes: several of torch's in each would only wait for one another.
RUN_TESTS := -P -m pytest -n auto --dist worksteal

.PHONY: demo test check unit wheel-test clean

# The stamp is rebuilt when the dependencies change. The constraints keep torch on its CPU build.
$(VENV)/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train,eval,harness,serve,ray]'
	touch $@

demo: $(VENV)/.stamp
	$(BIN)/fwd2bot demo

test: check unit wheel-test

check: $(VENV)/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.stamp
	OMP_NUM_THREADS=1 $(BIN)/python $(RUN_TESTS)

# The wheel has the very files of the checkout (test_packaging.py); the tests of the command show that it runs when
# installed: an interpreter that sees the dependencies of .venv, but not the checkout (a line in a .pth file adds a
# folder without reading the .pth files in it, so the editable install stays out).
wheel-test: $(VENV)/.stamp
	rm -rf dist $(WHEEL_VENV)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$($(WHEEL_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dependencies.pth
	$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	FWD2BOT_TEST_WHEEL=1 OMP_NUM_THREADS=1 $(WHEEL_VENV)/bin/python $(RUN_TESTS) tests/test_packaging.py tests/cli/test_main.py tests/cli/test_demo.py tests/cli/test_search.py tests/cli/test_index.py

clean:
	rm -rf dist build $(WHEEL_VENV) .mypy_cache .ruff_cache .pytest_cache
