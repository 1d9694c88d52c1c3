"""Text (JSON or YAML 1.2) becomes a plain tree: dict with str keys, list, str, int, finite float, bool, None.

Refused with a pointer: what the two languages let through or disagree on. That is duplicate keys, NaN and infinities
(1e999 included), deep nesting, text that is not Unicode, and YAML's aliases, tags and several documents in one.
Faults name places, never the values found there.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn, cast

import yaml

from dbserve.errors import Fault, SpecInvalid

MAX_DEPTH = 32
MAX_YAML_EVENTS = 50_000


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def read_json(text: bytes) -> object:
    """The tree of a JSON text. Raises SpecInvalid."""
    try:
        tree = json.loads(_decoded(text), object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        _refuse(f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})")
    except RecursionError:
        _refuse(f"nested deeper than {MAX_DEPTH} levels", code="too_deep")
    except ValueError:
        _refuse("an integer has more digits than any setting can hold", code="too_large")
    _check(tree, (), 0)
    return tree


def read_yaml(text: bytes) -> object:
    """The tree of a YAML document, by the core schema of YAML 1.2: `no` is a string, 5e-4 a number. Raises SpecInvalid.

    Built from the parser's events, so nothing is constructed or expanded that was not written out.
    """
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        tree = _document(_bounded(cast("Any", yaml).parse(_decoded(text), Loader=loader)))
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        _refuse(f"not YAML: {error.problem}{where}")
    except yaml.YAMLError:
        _refuse("not YAML: a character that YAML does not allow")
    except ValueError:
        _refuse("an integer has more digits than any setting can hold", code="too_large")
    _check(tree, (), 0)
    return tree


def _refuse(message: str, *, code: str = "malformed", at: str = "") -> NoReturn:
    raise SpecInvalid([Fault(at, code, message)])


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(f"not UTF-8 (byte {error.start})")


class _Twice(dict[str, Any]):
    """A mapping that was given a key twice. The walk, which knows where it lies, refuses it."""

    key = ""


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    twice = _Twice(mapping)
    seen: set[str] = set()
    for key, _ in pairs:
        twice.key = key if key in seen else twice.key
        seen.add(key)
    return twice


def _check(tree: object, path: tuple[str | int, ...], depth: int) -> None:
    """Refuse what is not plain."""
    if depth > MAX_DEPTH:
        _refuse(f"nested deeper than {MAX_DEPTH} levels", code="too_deep", at=pointer(*path))
    match tree:
        case _Twice():
            _refuse("this key is given twice", code="duplicate_key", at=pointer(*path, _printable(tree.key)))
        case dict():
            for key, value in cast("dict[str, object]", tree).items():
                if _printable(key) != key:
                    _refuse("a key here is not valid Unicode", at=pointer(*path))
                _check(value, (*path, key), depth + 1)
        case list():
            for index, value in enumerate(cast("list[object]", tree)):
                _check(value, (*path, index), depth + 1)
        case str() if _printable(tree) != tree:
            _refuse("not valid Unicode", at=pointer(*path))
        case float() if not math.isfinite(tree):
            _refuse("must be a finite number", code="not_finite", at=pointer(*path))
        case _:
            pass


def _printable(text: str) -> str:
    """The text without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


# --- YAML -------------------------------------------------------------------------------------------------------------

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((sign + word for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")), math.inf),
}


def _bounded(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    for count, event in enumerate(events):
        if count == MAX_YAML_EVENTS:
            _refuse(f"more than {MAX_YAML_EVENTS} YAML nodes", code="too_large")
        yield event


def _document(events: Iterator[yaml.Event]) -> object:
    tree: object = None
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                _refuse("more than one YAML document")
        elif isinstance(event, yaml.NodeEvent):
            tree = _node(event, events, 0)
    return tree


def _node(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> object:
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent):
        _refuse(f"YAML aliases are not read (line {line}); write the value out")
    if getattr(event, "tag", None) not in (None, "!"):
        _refuse(f"YAML tags are not read (line {line})")
    if depth > MAX_DEPTH:
        _refuse(f"nested deeper than {MAX_DEPTH} levels (line {line})", code="too_deep")
    match event:
        case yaml.ScalarEvent():
            return _scalar(event.value) if event.implicit[0] else event.value
        case yaml.SequenceStartEvent():
            items: list[object] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(_node(item, events, depth + 1))
            return items
        case _:
            pairs: list[tuple[str, object]] = []
            while not isinstance(item := next(events), yaml.MappingEndEvent):
                key = _node(item, events, depth + 1)
                if not isinstance(key, str):
                    _refuse(f"a key is not a string (line {item.start_mark.line + 1}); put it in quotes")
                pairs.append((key, _node(next(events), events, depth + 1)))
            return _mapping(pairs)


def _scalar(text: str) -> object:
    """What a plain (unquoted) scalar means."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
