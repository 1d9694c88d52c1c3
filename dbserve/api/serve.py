"""One process that serves the API."""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping

import uvicorn
from fastapi import FastAPI

from dbserve.api.app import create_app
from dbserve.api.wire import BoundedHttp
from dbserve.datasets.reach import limit_reach
from dbserve.errors import StartupRefused
from dbserve.garbage import collect_less_often
from dbserve.logs import configure
from dbserve.settings import Settings, refuse_open_door

GRACE_SECONDS = 5  # for open requests, after SIGTERM
BACKLOG = 1024


def serve(settings: Settings, *, announce: Callable[[str], None] = print) -> None:
    """Serve until SIGINT or SIGTERM. `announce` gets the address as soon as connections are accepted.

    Raises StartupRefused: the port is taken, the host is not ours, or it is public and no API key is set.
    """
    refuse_open_door(settings)
    configure(settings)
    limit_reach(settings.data_rules, own=settings.cache_dir)
    app = create_app(settings)
    collect_less_often()
    with contextlib.closing(_listen(settings.host, settings.port)) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        announce(f"http://{host}:{listener.getsockname()[1]}")
        uvicorn.Server(configured(app, settings, os.environ)).run(sockets=[listener])


def configured(app: FastAPI, settings: Settings, environment: Mapping[str, str]) -> uvicorn.Config:
    """How uvicorn serves the API. Addresses that X-Forwarded-For tells are believed of the proxies in
    FORWARDED_ALLOW_IPS alone; left to itself uvicorn believes whatever this machine sends."""
    proxies = environment.get("FORWARDED_ALLOW_IPS")
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        log_config=None,  # its lines come as ours do
        log_level=settings.log_level,
        access_log=False,  # the envelope says more, and less
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
    )


def _listen(host: str, port: int) -> socket.socket:
    """Bound here and not by uvicorn, so that a port in use is one clear line. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StartupRefused(f"cannot listen on {host} port {port}: {_why(error)}") from None


def _why(error: OSError) -> str:
    """The system's own words, without what the library adds."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
