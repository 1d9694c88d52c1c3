"""Values that a JSON schema allows, as Hypothesis draws them: as much of the language as our own schemas speak."""

from collections.abc import Mapping
from typing import Any, cast

from hypothesis import strategies as st

Schema = Mapping[str, Any]

_SMALL = 64  # most numbers of a sensible job are
_MOST = 3  # items of an array, unless the schema wants more


def values(schema: Schema, definitions: Mapping[str, Schema] | None = None) -> st.SearchStrategy[Any]:
    """Of the schema, whose `$ref`s mean those definitions. ValueError where it says what is not spoken here."""
    known = definitions if definitions is not None else cast("Mapping[str, Schema]", schema.get("$defs", {}))
    if "$ref" in schema:
        return st.deferred(lambda: values(known[str(schema["$ref"]).rpartition("/")[2]], known))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values(one, known) for one in schema["anyOf"]])
    match schema.get("type"):
        case "object":
            return _objects(schema, known)
        case "array":
            return _arrays(schema, known)
        case "string":
            return _strings(schema)
        case "integer":
            return _integers(schema)
        case "number":
            return _numbers(schema)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case None:  # anything
            return st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text(max_size=5))
        case other:
            raise ValueError(f"no values of type {other!r} are known")


def _objects(schema: Schema, known: Mapping[str, Schema]) -> st.SearchStrategy[dict[str, Any]]:
    properties = {name: values(one, known) for name, one in schema.get("properties", {}).items()}
    required = set(schema.get("required", ()))
    fixed = st.fixed_dictionaries(
        {name: one for name, one in properties.items() if name in required},
        optional={name: one for name, one in properties.items() if name not in required},
    )
    if properties:
        return fixed
    for pattern, one in schema.get("patternProperties", {}).items():
        most = schema.get("propertyNames", {}).get("maxLength", 4096)
        names = _strings({"pattern": pattern, "maxLength": most})
        return st.dictionaries(names, values(one, known), max_size=_MOST)
    free = schema.get("additionalProperties", True)
    of_anything = values(free if isinstance(free, Mapping) else {}, known)
    return st.just({}) if free is False else st.dictionaries(st.text(max_size=5), of_anything, max_size=_MOST)


def _arrays(schema: Schema, known: Mapping[str, Schema]) -> st.SearchStrategy[list[Any]]:
    if "prefixItems" in schema:
        return st.tuples(*(values(one, known) for one in schema["prefixItems"])).map(list)
    least = schema.get("minItems", 0)
    most = min(schema.get("maxItems", least + _MOST), least + _MOST)
    return st.lists(values(schema.get("items", {}), known), min_size=least, max_size=most)


def _strings(schema: Schema) -> st.SearchStrategy[str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 4096)
    if "pattern" in schema:  # `$` of ECMA 262 is the end; Python's is also before a last newline
        found = st.from_regex(schema["pattern"].replace("$", r"\Z"))
        return found.filter(lambda text: least <= len(text) <= most)
    return st.text(min_size=least, max_size=min(most, 20))


def _integers(schema: Schema) -> st.SearchStrategy[int]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    high = schema.get("maximum", schema.get("exclusiveMaximum", 2**63) - 1)
    return st.one_of(st.integers(low, min(high, low + _SMALL)), st.integers(low, high))


def _numbers(schema: Schema) -> st.SearchStrategy[float]:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return st.floats(
        low if above is None else above,
        high if below is None else below,
        exclude_min=above is not None,
        exclude_max=below is not None,
        allow_nan=False,
        allow_infinity=False,
    )
