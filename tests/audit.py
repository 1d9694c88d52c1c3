"""Known weaknesses of the pinned dependencies, asked of OSV (osv.dev) in one request: python -m tests.audit

Exit codes: 0 none is known; 1 some are, and are named; 3 it could not be checked, which is not the same as 0.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

PINS = Path(__file__).parents[1] / "constraints.txt"
SERVICE = "https://api.osv.dev/v1/querybatch"
SECONDS = 30.0
CLEAN, WEAK, UNCHECKED = 0, 1, 3

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?==(?P<version>[^\s;#]+)")


class Pin(NamedTuple):
    name: str
    version: str


def pins(text: str) -> list[Pin]:
    """Of a constraints file; local parts of versions (+cpu) are left out, as advisories know none."""
    found = [match for line in text.splitlines() if (match := _PIN.match(line.strip())) is not None]
    return [Pin(match["name"], match["version"].partition("+")[0]) for match in found]


def weaknesses(asked: Sequence[Pin], service: str) -> dict[Pin, list[str]]:
    """Advisories by pin. Raises httpx.HTTPError where nobody answers, ValueError where the answer is none."""
    queries = [{"package": {"name": pin.name, "ecosystem": "PyPI"}, "version": pin.version} for pin in asked]
    answer = httpx.post(service, json={"queries": queries}, timeout=SECONDS)
    answer.raise_for_status()
    results: Any = answer.json().get("results")
    if not isinstance(results, list) or len(results) != len(asked):
        raise ValueError("the answer is of other length than the question")
    return {
        pin: sorted(str(advisory["id"]) for advisory in found["vulns"])
        for pin, found in zip(asked, results, strict=True)
        if found.get("vulns")
    }


def main(service: str = SERVICE) -> int:
    asked = pins(PINS.read_text(encoding="utf-8"))
    try:
        found = weaknesses(asked, service)
    except (httpx.HTTPError, ValueError, AttributeError, KeyError) as error:
        print(f"audit: could NOT be checked: {service} {type(error).__name__}: {error}", file=sys.stderr)
        return UNCHECKED
    for pin, advisories in found.items():
        print(f"audit: {pin.name} {pin.version}: {', '.join(advisories)}", file=sys.stderr)
    print(f"audit: {len(asked)} pinned packages, {len(found)} with known weaknesses")
    return WEAK if found else CLEAN


if __name__ == "__main__":
    sys.exit(main(os.environ.get("DBSERVE_AUDIT_SERVICE", SERVICE)))
