"""Containers on this machine: what is built, and what runs."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = "localhost/dbserve-debian:bookworm"
TAG = "check"
# As Debian's own slim images leave it out.
WITHOUT = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*/*")
KEPT = "/usr/share/doc/*/copyright"
# Programs, and the package of Debian's that each is of.
NEEDED = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "catatonit": "catatonit",
    "iptables": "iptables",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
}


def missing() -> list[str]:
    """Packages of Debian to install first."""
    return [package for program, package in NEEDED.items() if shutil.which(program) is None]


class Engine:
    """podman and buildah, told what this machine allows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # A machine that is itself confined may not raise limits, and podman's defaults would.
        settings = directory / "containers.conf"
        limits = f'["nofile={hard}:{hard}", "nproc=32768:32768"]'
        settings.write_text(f'[containers]\ndefault_ulimits = {limits}\n[engine]\nruntime = "runc"\n')
        self._environment = {**os.environ, "CONTAINERS_CONF": str(settings), "BUILDAH_ISOLATION": "chroot"}

    def podman(self, *arguments: str, seconds: float = 120) -> str:
        """What it prints; AssertionError with all it said when it fails."""
        return self.call("podman", *arguments, seconds=seconds)

    def call(self, *command: str, seconds: float, **variables: str) -> str:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=ROOT,
            env={**self._environment, **variables},
        )
        assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        return ended.stdout.strip()

    def succeeds(self, *arguments: str) -> bool:
        """Whether podman does."""
        return (
            subprocess.run(["podman", *arguments], capture_output=True, env=self._environment, check=False).returncode
            == 0
        )

    def in_image(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """What a command prints in a new container, as the image's user, on a root that is read-only."""
        # Podman's own tmpfs everywhere would hide what the image needs.
        confined = ("--rm", "--network", "none", "--read-only", "--read-only-tmpfs=false", "--no-healthcheck")
        return self.podman("run", *confined, *options, image, *command)

    @contextmanager
    def network(self, name: str) -> Iterator[str]:
        """A network of its own, with all containers and volumes on it gone afterwards."""
        self.podman("network", "create", name)
        try:
            yield name
        finally:
            running = self.podman("ps", "--all", "--quiet", "--filter", f"network={name}").split()
            pods = {self.podman("inspect", "--format", "{{.Pod}}", each) for each in running} - {""}
            for pod in pods:
                self.podman("pod", "rm", "--force", "--time", "1", pod)
            for container in running:
                self.podman("rm", "--force", "--ignore", "--volumes", "--time", "1", container)
            self.podman("network", "rm", "--force", name)
            for volume in self.podman("volume", "ls", "--quiet", "--filter", f"name={name}").split():
                self.podman("volume", "rm", "--force", volume)

    def debian(self) -> str:
        """A base of Debian's packages and nothing of a registry's: Python, and the certificates of authorities."""
        if self.succeeds("image", "exists", BASE):
            return BASE
        archive = self.directory / "debian.tar"
        options = [f"--dpkgopt=path-exclude={path}" for path in WITHOUT] + [f"--dpkgopt=path-include={KEPT}"]
        packages = "--include=ca-certificates,python3,python3-venv"
        mirror = "http://deb.debian.org/debian"
        self.call("mmdebstrap", "--variant=minbase", packages, *options, "bookworm", str(archive), mirror, seconds=300)
        container = self.call("buildah", "from", "scratch", seconds=60)
        self.call("buildah", "add", "--quiet", container, str(archive), "/", seconds=120)
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.call("buildah", "config", "--env", path, "--cmd", "bash", container, seconds=60)
        self.call("buildah", "commit", "--quiet", "--rm", container, BASE, seconds=120)
        archive.unlink()
        return BASE

    def image(self, name: str, wheels: Path) -> str:
        """One of ours, as `make image` builds it, on Debian's base and without an index."""
        given = {"IMAGES": name, "BASE": self.debian(), "TAG": TAG, "WHEELS": str(wheels), "PIP_NO_INDEX": "1"}
        self.call("make", "image", seconds=1800, BUILDER="buildah", REGISTRY="localhost/", **given)
        return f"localhost/{name}:{TAG}"

    def redis(self) -> str:
        """Debian's Redis, which stands for the official image: that one cannot be fetched everywhere."""
        image = "localhost/dbserve-redis:check"
        if not self.succeeds("image", "exists", image):
            file = str(Path(__file__).parent / "Containerfile.redis")
            base = f"BASE={self.debian()}"
            self.call("buildah", "build", "--build-arg", base, "--file", file, "--tag", image, ".", seconds=300)
        return image

    def wait_until_healthy(self, container: str, *, seconds: float) -> None:
        """By the container's own health check, which podman would leave to systemd."""
        deadline = time.monotonic() + seconds
        while not self.succeeds("healthcheck", "run", container):  # it may have ended, and begin anew
            assert time.monotonic() < deadline, f"not healthy within {seconds:g} s\n{self.logs(container)}"
            time.sleep(0.5)

    def logs(self, container: str) -> str:
        ended = subprocess.run(["podman", "logs", container], capture_output=True, text=True, env=self._environment)
        return (ended.stdout + ended.stderr)[-6000:]

    def size(self, image: str) -> int:
        """Bytes, unpacked, the base included."""
        return int(self.podman("image", "inspect", "--format", "{{.Size}}", image))
