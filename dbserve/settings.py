"""Settings of one process, read once from the environment (prefix `DBSERVE_`) by the composition root."""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dbserve.admission import AT_HOME, NOTHING, Allowed, parse_allowed
from dbserve.contracts.access import RedisAccess
from dbserve.errors import StartupRefused

PREFIX = "DBSERVE_"
_RAY_TOKEN = Path("~/.ray/auth_token").expanduser()  # where Ray looks by itself
SHORTEST_KEY = 16  # characters
_GIVEN_OUT = re.compile(r"dbs_[0-9a-f]{12}_")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


class Settings(BaseSettings):
    """Where everything is. Every field is an environment variable: `redis_url` is DBSERVE_REDIS_URL."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, validate_default=True
    )

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="redis://, rediss:// or unix:// URL")
    redis_username: str | None = Field(default=None, description="user of Redis' ACL")
    redis_password: SecretStr | None = Field(
        default=None, description="beside the URL rather than in it: then workers are not told it, and need their own"
    )
    redis_ca_file: Path | None = Field(default=None, description="PEM: who signs the certificate of rediss://")
    redis_cert_file: Path | None = Field(default=None, description="PEM: our certificate, where Redis asks for one")
    redis_key_file: Path | None = Field(default=None, description="PEM: its key")
    ray_address: str = Field(default="auto", description="address of the Ray cluster; auto: the one on this machine")
    ray_auth_token_path: Path | None = Field(default=None, description="file that holds the cluster's token")
    artifacts: str = Field(
        default="dbserve-data/artifacts",
        repr=False,  # a URI may carry credentials, though they belong into AWS_ACCESS_KEY_ID and the like
        description="root of checkpoints and models: a directory that every node sees, or s3://bucket/prefix?region=...",
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dbserve",
        description="decoded shards; may be deleted at any time",
    )
    host: str = Field(default="127.0.0.1", description="address that the API listens on")
    port: int = Field(default=8000, ge=0, le=65_535, description="0: any free port")
    api_key: SecretStr | None = Field(
        default=None, description="required as a bearer token when set; several: comma-separated"
    )
    scrape_key: SecretStr | None = Field(
        default=None, description="a bearer token that opens /metrics and nothing else, for Prometheus"
    )
    rate_limit: int = Field(default=6000, ge=0, description="requests a minute of one API key; 0: any number")
    cors_origins: str = Field(
        default="", description="origins of other pages that may call the API from a browser; comma-separated"
    )
    lease_seconds: float = Field(
        default=15.0, ge=3.0, le=3600.0, description="how long a worker trains on without a word from Redis"
    )
    max_running_jobs: int | None = Field(default=None, ge=1, description="jobs that hold workers at the same time")
    max_running_blocks: int | None = Field(default=None, ge=1, description="tasks that hold workers at the same time")
    max_jobs_per_key: int | None = Field(
        default=None, ge=1, description="unfinished jobs of one project, and in `default` of one of api_key"
    )
    autoscaling: bool = Field(
        default=False, description="Ray's autoscaler may add nodes: it is told what waits for one"
    )
    data_allow: str | None = Field(
        default=None,
        description="what jobs may name as data besides builtin: ones: comma-separated schemes (s3://), prefixes "
        "(s3://bucket/sets, https://host/) and directories (/data). Unset: what this machine's user could open, where "
        "no key is asked for; else nothing",
    )
    webhook_private_hosts: bool = Field(
        default=False, description="webhooks may lead to this machine and its private network"
    )
    alive_file: Path | None = Field(
        default=None, description="file that the reconciler touches at every turn; probes look how old it is"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern="^https?://[^/]+",
        description="where traces go (OTLP over HTTP; spans to <endpoint>/v1/traces); unset: there are none",
    )
    log_level: str = Field(
        default="info", pattern="^(critical|error|warning|info|debug)$", description="the least that is logged"
    )
    log_format: str = Field(
        default="auto", pattern="^(auto|json|console)$", description="auto: readable lines on a terminal, else JSON"
    )

    @field_validator("artifacts", mode="before")
    @classmethod
    def _located(cls, location: object) -> object:
        """A directory as an absolute path, a URI as it is."""
        if not isinstance(location, str | Path) or "://" in str(location):
            return location
        return str(Path(location).expanduser().absolute())

    @field_validator("cache_dir", "ray_auth_token_path", "redis_ca_file", "redis_cert_file", "redis_key_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Workers run in other directories than the one this process was started in."""
        return path and path.expanduser().absolute()

    @property
    def redis(self) -> RedisAccess:
        """How this process reaches Redis."""
        files = (self.redis_ca_file, self.redis_cert_file, self.redis_key_file)
        password = self.redis_password.get_secret_value() if self.redis_password else None
        return RedisAccess(
            self.redis_url, self.redis_username, password, *(str(file) if file else None for file in files)
        )

    @property
    def api_keys(self) -> tuple[str, ...]:
        """Empty: no key is asked for."""
        if self.api_key is None:
            return ()
        return tuple(filter(None, (key.strip() for key in self.api_key.get_secret_value().split(","))))

    @property
    def keys_always_asked_for(self) -> bool:
        """Whether a request needs a key though none was ever made."""
        return self.api_key is not None or not is_loopback(self.host)

    @property
    def data_rules(self) -> Allowed:
        """What jobs may name as data."""
        return self.data_rules_for(by_key=False)

    def data_rules_for(self, *, by_key: bool) -> Allowed:
        """The same, of a job that somebody submits by a key: who is given one need not be this machine's user."""
        if self.data_allow is not None:
            return parse_allowed(self.data_allow)
        return NOTHING if by_key or self.keys_always_asked_for else AT_HOME

    @field_validator("data_allow")
    @classmethod
    def _each_a_rule(cls, given: str | None) -> str | None:
        if given is not None:
            parse_allowed(given)
        return given

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """Empty: pages of other origins may not call the API."""
        return tuple(filter(None, (origin.strip() for origin in self.cors_origins.split(","))))

    @field_validator("cors_origins")
    @classmethod
    def _each_an_origin(cls, given: str) -> str:
        for origin in filter(None, map(str.strip, given.split(","))):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("each origin is a scheme and a host, say https://ui.example.org; * is none")
        return given

    @field_validator("api_key", "scrape_key")
    @classmethod
    def _each_long_enough(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None and any(len(key.strip()) < SHORTEST_KEY for key in given.get_secret_value().split(",")):
            raise ValueError(f"each key must have at least {SHORTEST_KEY} characters")
        if given is not None and any(_GIVEN_OUT.match(key.strip()) for key in given.get_secret_value().split(",")):
            raise ValueError("dbs_... keys are made by a server for its clients, with scopes; here they would have all")
        return given

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process, secrets included."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
            if value is not None
        }


def refuse_open_door(settings: Settings) -> None:
    """Raises StartupRefused when others than this machine could reach an API that asks for no key."""
    if settings.api_key is None and not is_loopback(settings.host):
        raise StartupRefused(f"{settings.host} can be reached from outside: set {PREFIX}API_KEY, or bind to 127.0.0.1")


def refuse_open_cluster(settings: Settings, environment: Mapping[str, str]) -> None:
    """Raises StartupRefused when a cluster on other machines is to be joined without a token.

    Whoever reaches a Ray cluster that asks for none runs whatever they like on it. Of `auto` the address is known only
    when it is joined.
    """
    host = settings.ray_address.partition("://")[2] or settings.ray_address
    host = host.rpartition(":")[0].strip("[]")
    if not host or is_loopback(host):
        return
    mode = environment.get("RAY_AUTH_MODE", "")
    given = settings.ray_auth_token_path is not None or mode == "token"
    found = any(environment.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or _RAY_TOKEN.exists()
    if not given and not (found and not mode):
        raise StartupRefused(
            f"the Ray cluster at {settings.ray_address} can be reached from outside: start it with RAY_AUTH_MODE=token "
            f"and set {PREFIX}RAY_AUTH_TOKEN_PATH to its token's file"
        )


def is_loopback(host: str) -> bool:
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
