"""Custom resource definitions made strict: what a schema does not name, it refuses."""

import functools
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.kubernetes.chart import ROOT, Object

# The oldest that kubernetes-validate has schemas of, and the newest.
KUBERNETES = ("1.32", "1.37")
# Unmodified definitions of KubeRay and prometheus-operator, which are theirs and are not copied here.
CRDS = ROOT.parent / "shared/crds"
ABSENT = (
    f"the definitions of KubeRay and prometheus-operator are not in {CRDS}: nothing to hold custom resources against"
)


def strict(schema: Any) -> Any:
    """An openAPIV3Schema as JSON Schema that refuses unknown properties, as kubectl does."""
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "properties" in made:
        made["properties"] = {name: strict(each) for name, each in made["properties"].items()}
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if key in made:
            made[key] = strict(made[key])
    return made


@functools.cache
def validators(directory: Path = CRDS) -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """By apiVersion and kind. Empty where the definitions are absent."""
    found: dict[tuple[str, str], jsonschema.Draft202012Validator] = {}
    for path in sorted(directory.glob("crd_*.yaml")):
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)
        for version in crd["spec"]["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
            key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
            found[key] = jsonschema.Draft202012Validator(schema)
    return found


def complaints(resource: Object) -> list[str]:
    """What its definition says against a custom resource, and where."""
    validator = validators()[resource["apiVersion"], resource["kind"]]
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(resource)]
