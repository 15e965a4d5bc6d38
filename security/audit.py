"""Fails where a dependency has a known advisory.

    python -m security.audit

What is installed here, and the lowest versions that pyproject.toml admits, are held against
`advisories.toml`: the last known advisory of each package. Where the database of all advisories
(OSV) can be reached, pip-audit also holds what constraints.txt pins against that. Prints a line for
every fault and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
ADVISORIES = HERE / "advisories.toml"
PYPROJECT = HERE.parent / "pyproject.toml"
CONSTRAINTS = HERE.parent / "constraints.txt"
OSV = "https://api.osv.dev/v1/query"


@dataclass(frozen=True, kw_only=True)
class Advisory:
    """The last known one of a package.

    Attributes:
        package: Its normalised name.
        fixed: The first version without it.
        id: In the database.
        about: What it lets whom do.
    """

    package: str
    fixed: Version
    id: str
    about: str

    def __str__(self) -> str:
        return f"{self.id} ({self.about}); {self.fixed} is the first without it"


class UnreachableError(Exception):
    """The database gave no answer. Says why."""


def main() -> int:
    """Prints what is wrong, and how much was looked at; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--osv-url", default=OSV, help="the database to ask")
    known = read_advisories(ADVISORIES)
    installed: dict[str, Version] = {
        canonicalize_name(each.name): Version(each.version) for each in distributions()
    }
    faults = [*affected(installed, known), *admitted(PYPROJECT, known)]
    try:
        found, asked = ask_database(CONSTRAINTS, parser.parse_args().osv_url)
    except UnreachableError as error:
        told = f"the database was not reached ({error}), so that newer ones are not known"
    else:
        faults += found
        told = f"{asked} pinned versions against the database"
    for fault in faults:
        print(f"ADVISORY {fault}", file=sys.stderr)
    print(f"{len(installed)} installed packages held against {len(known)} advisories; {told}")
    return int(bool(faults))


def read_advisories(path: Path) -> dict[str, Advisory]:
    """The table, by package.

    Raises:
        ValueError: A package is there twice, or under another name than its normalised one.
    """
    known: dict[str, Advisory] = {}
    for entry in tomllib.loads(path.read_text())["advisory"]:
        advisory = Advisory(**entry | {"fixed": Version(entry["fixed"])})
        if advisory.package in known or canonicalize_name(advisory.package) != advisory.package:
            raise ValueError(f"{path.name}: {advisory.package!r} is there twice, or misspelt")
        known[advisory.package] = advisory
    return known


def affected(versions: Mapping[str, Version], known: Mapping[str, Advisory]) -> Iterator[str]:
    """A line for every version that has an advisory."""
    for name, version in sorted(versions.items()):
        if name in known and version < known[name].fixed:
            yield f"{name} {version} has {known[name]}: install that"


def admitted(pyproject: Path, known: Mapping[str, Advisory]) -> Iterator[str]:
    """A line for every requirement that may be installed with an advisory."""
    declared = tomllib.loads(pyproject.read_text())
    extras = declared["project"].get("optional-dependencies", {}).values()
    texts = [*declared["build-system"]["requires"], *declared["project"]["dependencies"]]
    for text in (*texts, *chain.from_iterable(extras)):
        requirement = Requirement(text)
        advisory = known.get(canonicalize_name(requirement.name))
        bounds = (each for each in requirement.specifier if each.operator in (">=", "=="))
        lowest = [Version(each.version) for each in bounds]
        if advisory is not None and max(lowest, default=Version("0")) < advisory.fixed:
            yield f"pyproject.toml admits {text}, which has {advisory}: raise its lower bound"


def ask_database(constraints: Path, osv_url: str) -> tuple[list[str], int]:
    """Holds pinned versions against every advisory that there is.

    Args:
        constraints: The pins.
        osv_url: Where the database takes queries.

    Returns:
        A line for each advisory, and how many versions were looked at.

    Raises:
        UnreachableError: There was no answer.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(constraints), "--no-deps"]
    command += ["--disable-pip", "--vulnerability-service", "osv", "--osv-url", osv_url]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        pinned = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        # Behind the kind of error, requests goes on for lines.
        raise UnreachableError(last.partition(":")[0]) from None
    faults = [
        f"{each['name']} {each['version']} has {advisory['id']}; "
        f"fixed in {', '.join(advisory['fix_versions']) or 'no version yet'}"
        for each in pinned
        for advisory in each.get("vulns", [])
    ]
    return faults, sum("version" in each for each in pinned)


if __name__ == "__main__":
    sys.exit(main())
