"""A job as text becomes a JobSpec, or a SpecInvalid that points at every fault."""

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dbserve.admission import BUILTIN
from dbserve.contracts.job import JobSpec
from dbserve.errors import Fault, SpecInvalid
from dbserve.plaintree import pointer, read_json, read_yaml

MAX_FAULTS = 50

Format = Literal["json", "yaml"]


def parse_job(text: bytes, form: Format) -> JobSpec:
    """The job that the text asks for. Raises SpecInvalid."""
    tree = read_json(text) if form == "json" else read_yaml(text)
    try:
        return JobSpec.model_validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as invalid:
        raise SpecInvalid(faults(invalid, tree)) from None


def read_job(text: bytes, *, form: Format, directory: Path) -> JobSpec:
    """The job of a file in `directory`: its local relative uris mean files there. Raises SpecInvalid."""
    spec = parse_job(text, form)
    source = _anchored(spec.architecture.source, directory)
    uris = {name: _anchored(getattr(spec.data, name), directory) for name in ("uri", "test_uri", "tokenizer")}
    return spec.model_copy(
        update={
            "architecture": spec.architecture.model_copy(update={"source": source}),
            "data": spec.data.model_copy(update=uris),
        }
    )


def _anchored(uri: str | None, directory: Path) -> str | None:
    if uri is None or "://" in uri or uri.startswith(BUILTIN):
        return uri
    path = Path(uri)
    with contextlib.suppress(RuntimeError):  # there is no such user: then it is a plain name, of nothing most likely
        path = path.expanduser()
    return str((directory / path).resolve())


def faults(invalid: ValidationError, tree: object, model: type[BaseModel] = JobSpec) -> tuple[Fault, ...]:
    """What is wrong with a tree that is no `model`: one fault a place, in the order found; what a union's members say
    of the same place is joined."""
    found: dict[str, Fault] = {}
    for error in invalid.errors(include_url=False, include_input=False, include_context=False):
        fault = _fault(error, tree, model)
        earlier = found.setdefault(fault.pointer, fault)
        if fault.message not in earlier.message:
            found[fault.pointer] = earlier._replace(message=f"{earlier.message}; or: {fault.message}")
        if len(found) == MAX_FAULTS:
            break
    return tuple(fault for fault in found.values() if not _other_member(fault, found))


def _other_member(fault: Fault, found: Iterable[str]) -> bool:
    """Whether it only follows from what is faulty inside: a literal was missed because another member of its union was
    meant, a list is too short without its faulty members."""
    return fault.code in {"literal_error", "too_short"} and any(
        place.startswith(fault.pointer + "/") for place in found
    )


def _fault(error: ErrorDetails, tree: object, model: type[BaseModel]) -> Fault:
    place = tuple(_place(error, tree))
    if error["type"] == "extra_forbidden":
        return Fault(pointer(*place), "unknown_key", "unknown key" + _nearest(place, model))
    if error["type"] == "missing":
        return Fault(pointer(*place), "missing", "required, and not given")
    return Fault(pointer(*place), error["type"], error["msg"].removeprefix("Value error, "))


def _place(error: ErrorDetails, tree: object) -> Iterator[str | int]:
    """The parts of pydantic's location that are places in the tree, not names of a union's members."""
    for part in error["loc"]:
        if isinstance(tree, dict) and part in tree:
            tree = cast("dict[str | int, object]", tree)[part]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(cast("list[object]", tree)):
            tree = cast("list[object]", tree)[part]
        elif error["type"] != "missing":
            continue
        yield part


def _nearest(place: Sequence[str | int], model: type[BaseModel]) -> str:
    """A hint, when a key that the contract knows is spelled much like the last part of the place."""
    for part in place[:-1]:
        field = model.model_fields.get(str(part))
        annotations = (field.annotation, *get_args(field.annotation)) if field else ()
        nested = [known for known in annotations if isinstance(known, type) and issubclass(known, BaseModel)]
        if not nested:
            return ""
        model = nested[0]
    close = difflib.get_close_matches(str(place[-1]), model.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
