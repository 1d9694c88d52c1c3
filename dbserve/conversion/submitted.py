"""The road of a job with a source: its options filled in from config.json, and held against the job and its data."""

import hashlib
from pathlib import Path

from pydantic import JsonValue

from dbserve.cards import OPTIONS_POINTER
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts
from dbserve.conversion.networks import Source, read_source
from dbserve.conversion.sources import POINTER, opened
from dbserve.conversion.weights import check_weights
from dbserve.datasets.vocabulary import MAX_TOKENIZER_BYTES
from dbserve.errors import ConfigInvalid


def with_source(spec: JobSpec, facts: DataFacts) -> JobSpec:
    """The job with its source's settings among its options; as it is where it has no source.

    Raises ConfigInvalid at the key that contradicts the source, at the data that do not fit it, or at
    /architecture/source where the network itself is none of ours.
    """
    if spec.architecture.source is None:
        return spec
    source = read_source(spec.architecture.source)
    if spec.architecture.kind != source.kind:
        raise ConfigInvalid(
            f"{source.directory} holds a network of kind {source.kind}, not {spec.architecture.kind}",
            "/architecture/kind",
        )
    if spec.blocks.branch is not None:
        raise ConfigInvalid("blocks of a source start from its own layers, not from a trunk", "/blocks/branch")
    options = _merged(spec.architecture.options, source)
    _check_images(facts, source)
    _check_tokens(facts, source)
    check_weights(source)
    return spec.model_copy(update={"architecture": spec.architecture.model_copy(update={"options": options})})


def _digest(path: Path) -> str:
    """Of a tokenizer; a larger one than can be planned with has the digest of none that is."""
    try:
        with opened(path) as file:
            return hashlib.sha256(file.read(MAX_TOKENIZER_BYTES + 1)).hexdigest()
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}", POINTER) from error


def _merged(given: dict[str, JsonValue], source: Source) -> dict[str, JsonValue]:
    for name, settled in source.options.items():
        value = given.get(name)
        if value is not None and value != settled:
            raise ConfigInvalid(
                f"{name} is {value}, but {settled} in the network of {POINTER}; leave it out",
                f"{OPTIONS_POINTER}/{name}",
            )
    return {**given, **source.options}


def _check_images(facts: DataFacts, source: Source) -> None:
    if source.image is None or facts.image_shape is None:
        return
    side, channels = source.image
    height, width, held = facts.image_shape
    if held != channels:
        raise ConfigInvalid(f"the source takes images of {channels} channels; the data have {held}", "/data/uri")
    if (height, width) != (side, side):
        raise ConfigInvalid(
            f"the source takes images of {side} x {side}; these are {height} x {width}. image_size: {side} resizes "
            "pixels (not arrays)",
            "/data/image_size",
        )


def _check_tokens(facts: DataFacts, source: Source) -> None:
    vocabulary = facts.vocabulary
    if source.tokens is None or vocabulary is None:
        return
    if vocabulary.size > source.tokens:
        raise ConfigInvalid(
            f"the data's vocabulary has {vocabulary.size} tokens, the source's table only {source.tokens} rows",
            "/data/tokenizer" if vocabulary.kind == "tokenizer" else "/data/vocabulary",
        )
    own = source.directory / "tokenizer.json"
    if own.exists() and (vocabulary.kind != "tokenizer" or vocabulary.sha256 != _digest(own)):
        raise ConfigInvalid(
            f"token k means what the source's own tokenizer says: data.tokenizer must be {own}", "/data/tokenizer"
        )
