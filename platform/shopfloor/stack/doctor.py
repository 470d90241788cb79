"""Examines the machine, the installation, the repository, the configuration and the stack, and says what to mend.

Looks only; nothing is started, installed or written. Every check answers within two seconds, and all run side by side.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from shopfloor.data import revisions
from shopfloor.errors import ShopfloorError
from shopfloor.patches import register
from shopfloor.patches.register import PATCHES
from shopfloor.settings import Settings, load_sourced_settings, profile_file
from shopfloor.stack import families, installation, lifecycle, operators, services, versions
from shopfloor.stack import state as states
from shopfloor.stack.finding import Finding, Verdict
from shopfloor.stack.services import TITLES, USUAL_PORTS

PYTHON = ((3, 11), (3, 14))
"""The first version that will do, and the first that will not."""
MEMORY_BYTES = 8 * 1024**3
"""Memory that a run and the stack take together at the peak."""
DISK_BYTES = 5 * 1024**3
DISK_MINIMUM_BYTES = 1024**3
TIMEOUT_S = 2.0
SHOWN = 5


def examine(profile: str | None = None) -> list[Finding]:
    """Run all checks.

    Args:
        profile: The profile to look at; none means what the environment says, then `embedded`.

    Returns:
        The findings, at least one for each check, in a fixed order.
    """
    try:
        sourced = load_sourced_settings(profile)
    except ShopfloorError as error:
        broken = Finding(subject="configuration", verdict="fail", message=error.message, remedy=error.remedy)
        return [*_python(), broken]
    settings = sourced.settings
    overridden = [
        field
        for field in USUAL_PORTS
        if settings.profile == "embedded" and sourced.sources[field] in {"environment", "argument"}
    ]
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        lambda: _packages(settings),
        lambda: _memory(),
        lambda: _disk(settings),
        lambda: _privacy(settings),
        lambda: _sources(settings),
        lambda: _git(settings),
        lambda: _dvc(settings),
        lambda: _configuration(settings, overridden),
        lambda: _object_store(settings),
        lambda: _stack(settings),
        lambda: operators.examine(settings, TIMEOUT_S),
        lambda: _schema(settings),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return [finding for findings in pool.map(lambda check: list(check()), checks) for finding in findings]


def _sources(settings: Settings) -> Iterator[Finding]:
    """Look at what is known by reading Python, in one thread: Python 3.11 makes no syntax trees in two at a time."""
    yield from _use_cases(settings)
    yield from _patches()


def _python() -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        yield Finding(subject="python", verdict="ok", message=f"{version} in {sys.prefix}")
        return
    versions = f"{PYTHON[0][0]}.{PYTHON[0][1]} to {PYTHON[1][0]}.{PYTHON[1][1] - 1}"
    yield Finding(
        subject="python",
        verdict="fail",
        message=f"{version}; the lock is made for {versions}",
        remedy="Name a right one and install anew: `make clean`, then `make run PYTHON=python3.11`.",
    )


def _packages(settings: Settings) -> Iterator[Finding]:
    lock = settings.project_root / "requirements" / "runtime.txt"
    reinstall = f"`uv pip install --python {sys.executable} --require-hashes -r {lock}` puts it right."
    installed = installation.installed_versions()
    try:
        pins = installation.read_lock(lock)
    except OSError as error:
        yield Finding(
            subject="packages",
            verdict="fail",
            message=f"the lock {lock} cannot be read: {error.strerror}",
            remedy="`git checkout requirements/runtime.txt` brings it back.",
        )
        return
    missing = [drift for drift in installation.find_drift(pins, installed) if drift.installed is None]
    moved = [drift for drift in installation.find_drift(pins, installed) if drift.installed is not None]
    conflicts = installation.find_conflicts(installed)
    if missing:
        names = _some([f"{drift.name} {drift.locked}" for drift in missing])
        yield Finding(subject="packages", verdict="fail", message=f"not installed: {names}", remedy=reinstall)
    if moved:
        names = _some([f"{drift.name} is {drift.installed}, not {drift.locked}" for drift in moved])
        yield Finding(subject="packages", verdict="fail", message=f"not as locked: {names}", remedy=reinstall)
    if conflicts:
        words = [f"{item.name} needs {item.requirement}, found {item.installed or 'none'}" for item in conflicts]
        yield Finding(subject="packages", verdict="fail", message=f"in conflict: {_some(words)}", remedy=reinstall)
    if not (missing or moved or conflicts):
        message = f"{len(pins)} packages as locked, no conflicts"
        yield Finding(subject="packages", verdict="ok", message=message)


def _patches() -> Iterator[Finding]:
    """Compare the components with the versions that our knowledge of their inside was checked against."""
    stale = [patch for patch in PATCHES if register.installed(patch.component) != patch.version]
    for component in dict.fromkeys(patch.component for patch in stale):
        ours = [patch for patch in stale if patch.component == component]
        moved = [patch.name for patch in ours if register.moved(patch)]
        yield Finding(
            subject="patches",
            verdict="fail" if moved else "warn",
            message=f"{component} is {register.installed(component)}; what we know of its inside was checked against"
            f" {ours[0].version}" + (f", and has changed: {_some(moved)}" if moved else ", and looks the same"),
            remedy="Install what the lock says, or look at platform/shopfloor/patches/register.py." if moved else "",
        )
    if not stale:
        message = f"all {len(PATCHES)} were checked against the versions that are installed"
        yield Finding(subject="patches", verdict="ok", message=message)


def _privacy(settings: Settings) -> Iterator[Finding]:
    """Look whether other accounts of this machine can read or steer what runs here."""
    place = settings.state_dir
    if place.is_dir() and place.stat().st_mode & 0o077:
        yield Finding(
            subject="privacy",
            verdict="fail",
            message=f"{place} is open to other accounts: they read what is kept there, and may run code as you",
            remedy=f"`shopfloor up` closes it, and so does `chmod 700 {place}`.",
        )
    else:
        yield Finding(subject="privacy", verdict="ok", message=f"{place} is closed to other accounts")
    config = configparser.ConfigParser()
    with contextlib.suppress(configparser.Error):  # the check of DVC says it
        config.read([settings.project_root / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    if not config.get("core", "site_cache_dir", fallback=""):
        yield Finding(
            subject="privacy",
            verdict="warn",
            message="`dvc` keeps pickles in a directory of all accounts of the machine, and runs what is in them",
            remedy="`shopfloor data prepare NAME` gives the clone its own.",
        )


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, available = min(total, limit), min(available, limit - used)
    enough = available >= MEMORY_BYTES
    yield Finding(
        subject="memory",
        verdict="ok" if enough else "warn",
        message=f"{_gib(available)} of {_gib(total)} available; a run takes up to {_gib(MEMORY_BYTES)}",
        remedy="" if enough else "Close what you do not need, or lower max_concurrent in use_case.yaml.",
    )


def _disk(settings: Settings) -> Iterator[Finding]:
    place = next(path for path in (settings.state_dir, *settings.state_dir.parents) if path.exists())
    if not os.access(place, os.W_OK):
        yield Finding(
            subject="disk",
            verdict="fail",
            message=f"{place} cannot be written",
            remedy="Mend its permissions, or set SHOPFLOOR_STATE_DIR to another directory.",
        )
        return
    free = shutil.disk_usage(place).free
    verdict: Verdict = "ok" if free >= DISK_BYTES else "warn" if free >= DISK_MINIMUM_BYTES else "fail"
    yield Finding(
        subject="disk",
        verdict=verdict,
        message=f"{_gib(free)} free where {settings.state_dir} is",
        remedy="" if verdict == "ok" else f"Free some space: {_gib(DISK_BYTES)} is comfortable.",
    )


def _git(settings: Settings) -> Iterator[Finding]:
    if shutil.which("git") is None:
        yield Finding(subject="git", verdict="fail", message="not found", remedy="Install git.")
        return
    answer = _run(["git", "-C", str(settings.project_root), "status", "--porcelain=v1", "--branch"])
    if answer is None or answer.returncode != 0:
        try:
            revisions.git(settings.project_root, "status")
        except ShopfloorError as error:
            yield Finding(subject="git", verdict="fail", message=error.message, remedy=error.remedy)
            return
        reason = answer.stderr.strip().splitlines()[-1:] if answer else ["git did not answer in time"]
        yield Finding(
            subject="git",
            verdict="fail",
            message=" ".join(reason) or "git status failed",
            remedy="Work in a clone: `git clone`. Without one no run knows which code made its model.",
        )
        return
    branch, *changes = answer.stdout.splitlines()
    unborn = branch.startswith("## No commits yet")
    message = f"{branch.removeprefix('## ')}, {len(changes)} uncommitted changes" if changes else branch[3:] + ", clean"
    remedy = "Commit before a run whose model you want to trace: its passport will say `dirty`." if changes else ""
    verdict: Verdict = "fail" if unborn else "warn" if changes else "ok"
    yield Finding(subject="git", verdict=verdict, message=message, remedy="Commit once." if unborn else remedy)


def _dvc(settings: Settings) -> Iterator[Finding]:
    config = configparser.ConfigParser()
    folder = settings.project_root / ".dvc"
    try:
        config.read([folder / "config", folder / "config.local"], encoding="utf-8")
    except configparser.Error as error:
        message = str(error).splitlines()[0]
        yield Finding(subject="dvc", verdict="fail", message=message, remedy="Mend .dvc/config.")
        return
    name = config.get("core", "remote", fallback="")
    url = config.get(f"'remote \"{name}\"'", "url", fallback="")
    if not url:
        yield Finding(
            subject="dvc",
            verdict="fail",
            message=f"no default remote in {folder / 'config'}" if not name else f"remote {name!r} has no url",
            remedy="`dvc remote add --default local ../.shopfloor/dvc-remote` keeps the data on this machine.",
        )
        return
    if not (settings.project_root / "dvc.lock").is_file():
        message, remedy = "no dvc.lock: no data version is recorded", "`dvc repro` makes the tables and records them."
        yield Finding(subject="dvc", verdict="warn", message=message, remedy=remedy)
    elif "://" not in url and not (folder / url).resolve().is_dir():
        message, remedy = f"remote {url} does not exist yet", "`shopfloor data prepare NAME` fills it."
        yield Finding(subject="dvc", verdict="warn", message=message, remedy=remedy)
    else:
        yield Finding(subject="dvc", verdict="ok", message=f"default remote {name!r} is {url}")


def _configuration(settings: Settings, overridden: list[str]) -> Iterator[Finding]:
    yield Finding(subject="configuration", verdict="ok", message=f"profile {settings.profile!r} is valid")
    for field in overridden:
        yield Finding(
            subject="configuration",
            verdict="warn",
            message=f"{field} is {getattr(settings, field)}, from the environment and not from the running stack",
            remedy=f"Unset SHOPFLOOR_{field.upper()} unless that is what you want.",
        )
    addresses = [str(getattr(settings, field)) for field in USUAL_PORTS if field != "ray_address"]
    # What goes to this machine never takes the proxy; other services may well be behind it.
    proxied = sorted({urlsplit(url).hostname or "" for url in addresses if not _is_direct(url)})
    if proxied:
        yield Finding(
            subject="configuration",
            verdict="warn",
            message=f"a proxy gets the requests for {', '.join(proxied)}",
            remedy="Where it should not, name these hosts in NO_PROXY.",
        )


def _use_cases(settings: Settings) -> Iterator[Finding]:
    from shopfloor.judging.gates import require_known
    from shopfloor.use_case import UseCase, list_use_cases, load_served_case, missing_code

    names = list_use_cases(settings)
    if not names:
        message = f"none in {settings.project_root / 'pipelines'}"
        yield Finding(subject="use cases", verdict="warn", message=message, remedy="Write a use_case.yaml.")
    for name in names:
        try:
            case = load_served_case(settings, name)
            require_known(settings, case)
        except ShopfloorError as error:
            message = error.message if name in error.message else f"{name}: {error.message}"
            yield Finding(subject="use cases", verdict="fail", message=message, remedy=error.remedy)
            continue
        missing = missing_code(settings, name) if isinstance(case, UseCase) else []
        yield Finding(
            subject="use cases",
            verdict="fail" if missing else "ok",
            message=f"{name} lacks {_some(missing)}" if missing else f"{name} is valid",
            remedy="docs/how-to/add-a-use-case.md says what each function does." if missing else "",
        )


def _object_store(settings: Settings) -> Iterator[Finding]:
    if settings.s3_endpoint_url is None:
        return
    place = urlsplit(settings.s3_endpoint_url)
    if not _listens(place.hostname or "", place.port or (443 if place.scheme == "https" else 80)):
        yield Finding(
            subject="object store",
            verdict="fail",
            message=f"{settings.s3_endpoint_url} does not answer",
            remedy="Start it, or mend s3_endpoint_url in the profile.",
        )
        return
    keys = {"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"}
    credentials = bool(keys & os.environ.keys()) or (Path.home() / ".aws" / "credentials").is_file()
    yield Finding(
        subject="object store",
        verdict="ok" if credentials else "warn",
        message=f"{settings.s3_endpoint_url} answers" + ("" if credentials else ", but there are no credentials"),
        remedy="" if credentials else "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )


def _stack(settings: Settings) -> Iterator[Finding]:
    if settings.profile != "embedded":
        yield from _remote_services(settings)
        return
    if states.read(settings) is None:
        message = "not up"
        yield Finding(subject="stack", verdict="warn", message=message, remedy="Start it: `shopfloor up`.")
        for port in USUAL_PORTS.values():
            if not families.port_is_free(port):
                holder = families.holder_of(port)
                message = f"{port} is taken by {holder}; `shopfloor up` takes another one"
                yield Finding(subject="ports", verdict="warn", message=message)
        return
    for service in lifecycle.status(settings).services:
        well = service.health in {"healthy", "starting"}
        yield Finding(
            subject=service.name,
            verdict="ok" if well else "fail",
            message=f"{service.health} on {service.address}" + (f", {service.note}" if service.note else ""),
            remedy="" if well else "`shopfloor up` starts what is missing.",
        )
        yield from _skew(service.name, service.version)


def _remote_services(settings: Settings) -> Iterator[Finding]:
    file = profile_file(settings.project_root, settings.profile)
    for name, field in (("mlflow", "tracking_uri"), ("ray", "ray_dashboard_url")):
        well = services.answers(name, settings, TIMEOUT_S)
        yield Finding(
            subject=name,
            verdict="ok" if well else "fail",
            message=f"{TITLES[name]} at {getattr(settings, field)} " + ("answers" if well else "does not answer"),
            remedy="" if well else f"Start it, or mend {field} in {file}.",
        )
        if well:
            yield from _skew(name, services.version_of(name, settings))


def _skew(service: str, version: str) -> Iterator[Finding]:
    """Compare the version that a service says it has with the one that is installed here."""
    installed = versions.installed(service)
    if installed and version not in ("", installed):
        message = f"{version} answers, and {installed} is installed here"
        yield Finding(subject=service, verdict="warn", message=message, remedy=versions.UPGRADE)


def _schema(settings: Settings) -> Iterator[Finding]:
    """Compare the schema of the embedded stack's database with the one that the installed MLflow wants."""
    if settings.profile != "embedded" or not versions.database(settings).is_file():
        return
    try:
        versions.require_schema(settings)
    except ShopfloorError as error:
        yield Finding(subject="schema", verdict="fail", message=error.message.rstrip("."), remedy=error.remedy)
        return
    message = "that of MLflow's database is what the installed MLflow wants"
    yield Finding(subject="schema", verdict="ok", message=message)


def _is_direct(url: str) -> bool:
    """Tell whether requests to an address go there and not to a proxy."""
    from urllib import request

    place = urlsplit(url)
    local = place.hostname in {"127.0.0.1", "localhost", "::1"}
    return local or place.scheme not in request.getproxies() or bool(request.proxy_bypass(place.netloc))


def _listens(host: str, port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=TIMEOUT_S):
        return True
    return False


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return None


def _some(items: list[str]) -> str:
    more = len(items) - SHOWN
    return "; ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _gib(size: float) -> str:
    return f"{size / 1024**3:.1f} GiB"
