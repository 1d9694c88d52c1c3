"""The directory of an existing network: where it is, and its settings with their types checked."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from dbserve.admission import LOCAL
from dbserve.datasets.reach import admit, open_local
from dbserve.errors import ConfigInvalid

POINTER = "/architecture/source"
MAX_JSON_BYTES = 16 * 1024 * 1024  # of a config or an index, which take up to 40 times as much when parsed


def source_directory(uri: str) -> Path:
    """The local directory that a source names; ConfigInvalid where it is none, or may not be read."""
    place = admit(uri, pointer=POINTER)
    if place.scheme != LOCAL:
        raise ConfigInvalid(f"source is a local directory, not {place.scheme}://: download the network first", POINTER)
    directory = Path(place.path)
    try:
        if directory.is_dir():
            return directory
    except OSError as error:  # no name that a directory could have, or none that may be looked at
        raise ConfigInvalid(f"the source cannot be read: {error.strerror}", POINTER) from error
    raise ConfigInvalid(f"there is no directory {directory}", POINTER)


def opened(path: Path) -> AbstractContextManager[IO[bytes]]:
    """A file of a source, wherever its links lead, as far as this process may read that. ConfigInvalid, OSError."""
    return open_local(admit(str(path), pointer=POINTER), pointer=POINTER)


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; ConfigInvalid where it is missing, too large or something else."""
    try:
        with opened(path) as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ConfigInvalid(f"{path} is larger than {MAX_JSON_BYTES:,} bytes", POINTER)
        found = json.loads(text)
    except FileNotFoundError as error:
        raise ConfigInvalid(f"{path.parent} holds no {path.name}", POINTER) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigInvalid(f"{path} cannot be read: {error}", POINTER) from error
    if not isinstance(found, dict):
        raise ConfigInvalid(f"{path} holds no JSON object", POINTER)
    return cast(dict[str, Any], found)


@dataclass(frozen=True)
class Settings:
    """config.json. What it leaves out is its library's default; everything wrong with it is ConfigInvalid."""

    values: Mapping[str, Any]

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refused(name, "must be a whole number of at least 1")
        return value

    def side(self, name: str, default: int) -> int:
        """The side of a square: a number, or two equal ones."""
        value = self._value(name, default)
        sides = cast(list[Any], value) if isinstance(value, list) else [value]
        if len(sides) not in (1, 2) or any(type(side) is not int or side < 1 or side != sides[0] for side in sides):
            raise self.refused(name, "must be the side of a square")
        return sides[0]

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.refused(name, "must be a number above 0")
        return float(value)

    def choice(self, name: str, default: str, ours: Mapping[str, str]) -> str:
        """Our word for one of theirs."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in ours:
            raise self.refused(name, f"is none that we have ({', '.join(ours)})")
        return ours[value]

    def only(self, name: str, wanted: Any, reason: str) -> None:
        """Refuses every value but one, which is the library's default as well."""
        if self._value(name, wanted) != wanted:
            raise self.refused(name, reason)

    def refused(self, name: str, reason: str) -> ConfigInvalid:
        """The error of a setting."""
        return ConfigInvalid(f"config.json: {name} = {json.dumps(self.values.get(name))}: {reason}", POINTER)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        return default if value is None else value
