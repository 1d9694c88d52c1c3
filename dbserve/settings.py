"""Settings of one process, read once from the environment (prefix `DBSERVE_`) by the composition root."""

import ipaddress
import os
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dbserve.errors import StartupRefused

PREFIX = "DBSERVE_"


class Settings(BaseSettings):
    """Where everything is. Every field is an environment variable: `redis_url` is DBSERVE_REDIS_URL."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, validate_default=True
    )

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="redis://, rediss:// or unix:// URL")
    ray_address: str = Field(default="auto", description="address of the Ray cluster; auto: the one on this machine")
    ray_auth_token_path: Path | None = Field(default=None, description="file that holds the cluster's token")
    artifacts: Path = Field(default=Path("dbserve-data/artifacts"), description="root of checkpoints and models")
    cache_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dbserve",
        description="decoded shards; may be deleted at any time",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535, description="0: any free port")
    api_key: SecretStr | None = Field(default=None, min_length=16, description="required as a bearer token when set")
    log_level: str = Field(default="info", pattern="^(critical|error|warning|info|debug)$")

    @field_validator("artifacts", "cache_dir", "ray_auth_token_path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Workers run in other directories than the one this process was started in."""
        return path and path.expanduser().absolute()

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process (the API key included)."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
            if value is not None
        }


def refuse_open_door(settings: Settings) -> None:
    """Raises StartupRefused when others than this machine could reach an API that asks for no key."""
    if settings.api_key is None and not _is_loopback(settings.host):
        raise StartupRefused(f"{settings.host} can be reached from outside: set {PREFIX}API_KEY, or bind to 127.0.0.1")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(**overrides: Any) -> Settings:
    """The settings: what is given here wins over the environment; None means not given.

    Raises StartupRefused that names the variable, never its value.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as invalid:
        first = invalid.errors(include_input=False, include_url=False)[0]
        variable = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise StartupRefused(f"{variable}: {first['msg']}") from None
