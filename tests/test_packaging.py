"""What is installed is what was locked, and the wheel holds everything the service needs."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
TARGETS = [
    *("help", "demo", "run", "run-api", "run-dispatcher"),
    *("test", "check", "bench", "openapi", "fuzz", "lock", "clean"),
]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_one_exact_version_and_a_hash(lock):
    entries = locked(lock)
    assert len(entries) > 20
    for requirement, hashes in entries:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert "*" not in specifier.version, requirement
        assert hashes, requirement
    names = [entry.requirement.name for entry in entries]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(("lock", "extras"), [(LOCKS[0], []), (LOCKS[1], ["dev"])])
def test_the_lock_has_what_setup_cfg_asks_for_in_the_range_it_allows(lock, extras):
    versions = locked_versions(lock)
    config = setup_cfg()
    wanted = config["options"]["install_requires"].split("\n")
    for extra in extras:
        wanted += config["options.extras_require"][extra].split("\n")
    requirements = [Requirement(line) for line in wanted if line]
    assert len(requirements) > 10
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not locked: make lock"
        assert versions[name] in requirement.specifier, f"{requirement}: make lock"


def test_production_runs_the_versions_that_were_tested():
    tested = locked_versions("requirements-dev.lock")
    for name, version in locked_versions("requirements.lock").items():
        assert tested[name] == version, name


@pytest.mark.parametrize("lock", [*LOCKS, "tests/node/package-lock.json"])
def test_a_lock_names_no_download_address(lock):
    """Whoever has a mirror of the registry can use it: the hashes say what is acceptable."""
    assert re.findall(r"\w+://\S+|--index-url|--find-links", (ROOT / lock).read_text()) == []


def test_make_help_lists_every_target_with_a_sentence():
    listed = dict(
        re.fullmatch(r"make (\S+) +(\S.*)", line).groups() for line in make("help").splitlines()
    )
    assert list(listed) == TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony.split() == TARGETS


def test_make_alone_is_make_help():
    assert make() == make("help")


def test_the_wheel_holds_the_packages_the_command_and_the_schema(wheel):
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"app", "dispatcher", "hookjetty"}
    for module in ("app/__init__.py", "dispatcher/__init__.py", "hookjetty/verify.py"):
        assert module in names
    assert wheel.read("app/schema.sql") == (ROOT / "schema.sql").read_bytes()
    steps = {name for name in names if name.startswith("app/migrations/")}
    there = {f"app/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")}
    assert steps == {*there, "app/migrations/9999.sql"}
    (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
    assert "hookjetty = app.cli:main" in wheel.read(entry_points).decode()


def test_an_installed_wheel_finds_its_schema(wheel, tmp_path):
    site = tmp_path / "site"
    wheel.extractall(site)
    found = run(
        [sys.executable, "-c", "import app.db as d; print(d.__file__); print(d.schema_sql())"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    module, _, schema = found.partition("\n")
    assert Path(module) == site / "app" / "db.py"
    assert schema.strip() == (ROOT / "schema.sql").read_text().strip()


class Locked(NamedTuple):
    requirement: Requirement
    hashes: list[str]


def locked(lock: str) -> list[Locked]:
    """The entries of a lock file; anything in it that is neither entry nor comment fails."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    entries = []
    for line in lines:
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), line
        entries.append(Locked(Requirement(requirement), hashes))
    return entries


def locked_versions(lock: str) -> dict[str, str]:
    return {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement, _ in locked(lock)
    }


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return config


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Our wheel, built from a copy of the sources, so that nothing is left beside them."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("app", "dispatcher", "hookjetty"):
        shutil.copytree(ROOT / name, sources / name, symlinks=True)
    shutil.copytree(ROOT / "migrations", sources / "migrations")
    (sources / "migrations" / "9999.sql").touch()  # one step at least
    for pattern in ("setup.*", "schema.sql", "LICENSE", "README.md"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, sources)
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    run([sys.executable, "-c", build], cwd=sources)
    (path,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def make(*targets: str) -> str:
    """What ``make`` prints here, also when these tests were themselves started by make."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return run(["make", "--no-print-directory", *targets], cwd=ROOT, env=outside)


def run(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    """The standard output of a command that succeeds; of one that does not, all it said."""
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
