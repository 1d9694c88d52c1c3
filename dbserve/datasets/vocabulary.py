"""From text to tokens and back: characters, bytes, or a Hugging Face tokenizer's file. Free of torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.plan import Vocabulary
from dbserve.datasets.shards import absolute_uri, read_file
from dbserve.errors import ContractMismatch, DataInvalid

TOKENIZER = "/data/tokenizer"
MAX_TOKENIZER_BYTES = 64 << 20  # published ones have up to about 35 MB
# Parsed, a short token takes 25 times its bytes: 64 MiB of them take 2 GiB; what is within all three bounds, 0.75.
MAX_TOKENIZER_COMMAS = 2_000_000  # 262,000 tokens and 580,000 merges, as in the largest, are 1,400,000
MAX_TOKENS = 1 << 20
_CODE_POINTS = 0x110000


class UnknownCharacter(Exception):
    """A character that the vocabulary lacks; `row` counts within the texts that were to be encoded."""

    def __init__(self, row: int, character: str) -> None:
        super().__init__(f"{named(character)} is not in the vocabulary")
        self.row = row
        self.character = character


class Codec(Protocol):
    """Between text and the tokens of one vocabulary."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The tokens of the texts, joined without anything between them. Shape (tokens,). Raises UnknownCharacter."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """What the tokens spell; what is no text (half a character of `bytes`) becomes the replacement character."""
        ...


def codec_of(vocabulary: Vocabulary) -> Codec:
    """The codec of a planned vocabulary.

    Raises ContractMismatch when the tokenizer's file is no longer the one that was planned with, DataInvalid when it
    cannot be read.
    """
    if vocabulary.kind == "characters":
        return CharacterCodec(vocabulary.symbols)
    if vocabulary.kind == "bytes":
        return ByteCodec()
    uri = cast("str", vocabulary.tokenizer)
    content = read_file(uri, most=MAX_TOKENIZER_BYTES, pointer=TOKENIZER)
    if (found := hashlib.sha256(content).hexdigest()) != vocabulary.sha256:
        planned = vocabulary.sha256
        raise ContractMismatch(f"tokenizer {uri} changed: its sha256 was {planned} when planned, and is {found}")
    return TokenizerCodec(uri, content)


def characters_vocabulary(symbols: Iterable[str]) -> Vocabulary:
    """Token k is the k-th of the sorted distinct characters."""
    ordered = tuple(sorted(set(symbols)))
    return Vocabulary(kind="characters", size=len(ordered), symbols=ordered, sha256=_digest(ordered))


def bytes_vocabulary() -> Vocabulary:
    """Token k is the byte k of the text's UTF-8."""
    return Vocabulary(kind="bytes", size=256, sha256=_digest(range(256)))


def tokenizer_vocabulary(uri: str) -> Vocabulary:
    """The vocabulary of a tokenizer.json. Raises DataInvalid at /data/tokenizer when it is not one."""
    uri = absolute_uri(uri, pointer=TOKENIZER)
    content = read_file(uri, most=MAX_TOKENIZER_BYTES, pointer=TOKENIZER)
    size = TokenizerCodec(uri, content).size
    return Vocabulary(kind="tokenizer", size=size, tokenizer=uri, sha256=hashlib.sha256(content).hexdigest())


class CharacterCodec:
    """One token a character."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self._symbols = code_points(symbols)
        self._token_of = np.full(_CODE_POINTS, -1, dtype=np.int64)
        self._token_of[self._symbols] = np.arange(len(symbols))

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        tokens = self._token_of[code_points(texts)]
        if len(tokens) and tokens.min() < 0:
            unknown = int(np.argmax(tokens < 0))
            ends = np.cumsum([len(text) for text in texts])
            row = int(np.searchsorted(ends, unknown, side="right"))
            raise UnknownCharacter(row, texts[row][unknown - int(ends[row]) + len(texts[row])])
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        return self._symbols[_numbers(tokens)].tobytes().decode("utf-32-le")


class ByteCodec:
    """One token a byte of UTF-8."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return np.frombuffer("".join(texts).encode(), dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return _numbers(tokens).astype(np.uint8).tobytes().decode(errors="replace")


class TokenizerCodec:
    """A Hugging Face tokenizer. Each text is encoded by itself, without the special tokens that frame a sentence."""

    def __init__(self, uri: str, content: bytes) -> None:
        try:
            from tokenizers import Tokenizer  # an extra: most texts do without
        except ImportError as error:
            raise DataInvalid(
                "a tokenizer needs the tokenizers library: pip install 'dbserve[hf]'", TOKENIZER
            ) from error
        if content.count(b",") > MAX_TOKENIZER_COMMAS:
            raise DataInvalid(f"{uri} lists more than {MAX_TOKENIZER_COMMAS:,} tokens and merges", TOKENIZER)
        try:
            self._tokenizer = cast("Any", Tokenizer.from_str(content.decode()))
        except Exception as error:  # the library raises no type of its own
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataInvalid(f"{uri} is not a tokenizer.json: {why}", TOKENIZER) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if (count := self._tokenizer.get_vocab_size(with_added_tokens=True)) > MAX_TOKENS:
            raise DataInvalid(f"{uri} knows {count:,} tokens; at most {MAX_TOKENS:,} are taken", TOKENIZER)
        ids = cast("dict[str, int]", self._tokenizer.get_vocab(with_added_tokens=True)).values()
        self.size = max(ids, default=-1) + 1
        if self.size < 2:
            raise DataInvalid(f"{uri} knows {self.size} tokens; a vocabulary needs two", TOKENIZER)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        found = cast("list[Any]", self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))
        pieces = [np.asarray(encoding.ids, dtype=np.int64) for encoding in found]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return cast("str", self._tokenizer.decode(_numbers(tokens).tolist(), skip_special_tokens=False))


def code_points(texts: Sequence[str]) -> NDArray[np.uint32]:
    """The code points of the texts, one after the other."""
    return np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")


def _numbers(tokens: Iterable[int]) -> NDArray[np.int64]:
    return np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens), dtype=np.int64)


def named(character: str) -> str:
    """A character as a message shows it: the invisible ones too."""
    return f"character {character!r} (U+{ord(character):04X})"


def _digest(symbols: Iterable[str | int]) -> str:
    return hashlib.sha256(json.dumps(list(symbols), separators=(",", ":")).encode()).hexdigest()
