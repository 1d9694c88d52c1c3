"""docs/settings.md, from the settings' own descriptions: `python -m tests.settings_page > docs/settings.md`."""

from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dbserve.settings import PREFIX, Settings

HEAD = """# Settings

Every program (`dbserve api`, `reconcile`, `up`) reads these from its environment, once, when it starts; what is given
on the command line wins. Where Redis, Ray and artefacts are, `up` takes from its options alone. A value that cannot
be is refused with the name of the variable, and never shown.

| variable | default | what it is |
|---|---|---|
"""

TAIL = """
`DBSERVE_URL`, `DBSERVE_API_KEY` and `DBSERVE_PROJECT` are what the command line sends, and to whom; the Python client
is given them. On worker nodes `DBSERVE_REDIS_*` and `DBSERVE_CACHE_DIR` of the node's own environment win over what
the reconciler tells. Object stores read their usual variables (`AWS_ACCESS_KEY_ID`, ...).
"""


def page() -> str:
    rows = (_row(name, field) for name, field in Settings.model_fields.items())
    return HEAD + "".join(rows) + TAIL


def _row(name: str, field: FieldInfo) -> str:
    said = (field.description or "").replace("|", "\\|")
    return f"| `{PREFIX}{name.upper()}` | {_default(field)} | {said} |\n"


def _default(field: FieldInfo) -> str:
    match field.default:
        case value if value is PydanticUndefined:
            return "`~/.cache/dbserve`"
        case None | "":
            return ""
        case SecretStr():
            raise ValueError("a secret has no default")
        case bool(value):
            return f"`{str(value).lower()}`"
        case Path() | str() | int() | float() as value:
            return f"`{value}`"
        case value:
            raise TypeError(f"how is {value!r} written in an environment?")


if __name__ == "__main__":
    print(page(), end="")
