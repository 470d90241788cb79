"""A pod of the interpreter: its containers are processes of this machine, its volumes and the bucket directories.

A path of a volume is replaced by the pod's own directory wherever it stands in the pod, and put back in what the pod
gives, so that nothing of this machine is seen by what follows.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.argo.expressions import UnknownFeature
from tests.argo.manifest import Json
from tests.argo.tags import ArgoError

PROJECT = Path(__file__).resolve().parents[2]
LAUNCHER = PROJECT / "platform" / "shopfloor" / "engines" / "argo" / "launcher.py"
_LAUNCHERS = {
    ("python3", "-m", "shopfloor.engines.argo.launcher"): [sys.executable, "-m", "shopfloor.engines.argo.launcher"],
    ("python3", "/shopfloor/launcher.py"): [sys.executable, str(LAUNCHER)],
}


@dataclass
class Machine:
    """Where pods of a workflow run."""

    place: Path
    """Holds the pods, the volume claims and the bucket."""
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    """Secrets and config maps: name to keys."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables of every container."""

    @property
    def bucket(self) -> Path:
        """The artifact repository."""
        return self.place / "bucket"


@dataclass
class Ended:
    """How a pod ended."""

    exit_code: int
    parameters: dict[str, str]
    artifacts: dict[str, str]
    """Output artifacts that were there: name to key."""
    problem: str = ""
    """What was missing of its outputs."""


def run(machine: Machine, pod: str, template: Json, claims: list[str]) -> tuple[Ended, Callable[[], str]]:
    """Run the containers of a pod, one after another.

    Args:
        machine: Where.
        pod: Its name.
        template: The template, with nothing left to substitute.
        claims: The workflow's own volume claims.

    Returns:
        How it ended, and a function that reads its log.

    Raises:
        ArgoError: It cannot start.
    """
    here = machine.place / "pods" / pod
    (here / "tmp").mkdir(parents=True)
    (here / "work").mkdir()
    volumes = {volume["name"]: _volume(machine, here, volume) for volume in template.get("volumes", [])}
    volumes |= {name: machine.place / "claims" / name for name in claims}
    for place in volumes.values():
        place.mkdir(parents=True, exist_ok=True)
    containers = _containers(template)
    paths = _Paths(volumes, containers[0])
    log = here / "log"
    for artifact in template.get("inputs", {}).get("artifacts", []):
        _load(machine, artifact, Path(paths.real(artifact["path"])))
    code = 0
    # The members of a set stand in the order in which they wait for one another.
    for container in (*template.get("initContainers", []), *containers):
        # The interpreter runs the repository's own launcher: nothing to copy.
        if code == 0 and container.get("name") != "launcher":
            own = _Paths(volumes, container)
            deadline = template.get("activeDeadlineSeconds")
            own_metadata = template.get("metadata", {})
            annotations = {"workflows.argoproj.io/node-name": pod} | own_metadata.get("annotations", {})
            facts = {"metadata": {"name": pod, "uid": pod, **own_metadata, "annotations": annotations}}
            code = _process(machine, here, facts, container, own, log, float(deadline) if deadline else None)
    ended = Ended(code, {}, {})
    for parameter in template.get("outputs", {}).get("parameters", []):
        _collect(parameter, paths, ended)
    for artifact in template.get("outputs", {}).get("artifacts", []):
        place = Path(paths.real(artifact["path"]))
        if place.exists():
            ended.artifacts[artifact["name"]] = artifact["s3"]["key"]
            _copy(place, machine.bucket / artifact["s3"]["key"])
        elif not artifact.get("optional") and not ended.problem:
            ended.problem = f"failed to save output artifact {artifact['name']!r}: {artifact['path']}: no such file"
    return ended, lambda: log.read_text(errors="replace") if log.exists() else ""


def _containers(template: Json) -> list[Json]:
    if "container" in template:
        return [template["container"]]
    shared = template["containerSet"].get("volumeMounts", [])
    return [
        {**member, "volumeMounts": [*member.get("volumeMounts", []), *shared]}
        for member in template["containerSet"]["containers"]
    ]


class _Paths:
    """Paths of a container's volumes, here and there."""

    def __init__(self, volumes: dict[str, Path], container: Json) -> None:
        self._real: dict[str, str] = {}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise ArgoError(f"volumeMount {mount['name']!r} has no volume")
            if mount["mountPath"] == str(Path("/shopfloor")):
                continue
            place = volumes[mount["name"]] / mount.get("subPath", "")
            place.mkdir(parents=True, exist_ok=True)
            self._real[mount["mountPath"]] = str(place)
        longest = sorted(self._real, key=len, reverse=True)
        self._pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])" for path in longest) or r"(?!)")

    def real(self, text: str) -> str:
        """Return a text with the container's paths replaced by those of this machine."""
        return self._pattern.sub(lambda match: self._real[match[0]], text)

    def pretended(self, text: str) -> str:
        """Return a text with the paths of this machine replaced by the container's."""
        for path, real in self._real.items():
            text = text.replace(real, path)
        return text


def _volume(machine: Machine, here: Path, volume: Json) -> Path:
    name = volume["name"]
    if "persistentVolumeClaim" in volume:
        return machine.place / "claims" / str(volume["persistentVolumeClaim"]["claimName"])
    place = here / "volumes" / name
    source = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
    if source:
        place.mkdir(parents=True)
        for key, value in _keys(machine, source, bool((volume.get("secret") or volume["configMap"]).get("optional"))):
            (place / key).write_text(value)
    return place


def _keys(machine: Machine, name: str, optional: bool) -> list[tuple[str, str]]:
    if name not in machine.secrets and not optional:
        raise ArgoError(f'secret "{name}" not found')
    return list(machine.secrets.get(name, {}).items())


def _load(machine: Machine, artifact: Json, place: Path) -> None:
    key = artifact.get("s3", {}).get("key")
    source = machine.bucket / key if key else None
    if source is not None and source.exists():
        _copy(source, place)
    elif not artifact.get("optional"):
        raise ArgoError(f"failed to load artifact {artifact['name']!r}: key {key!r} not found")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        shutil.copyfile(source, target)
        return
    # A bucket holds objects: an empty directory leaves nothing in it.
    for file in source.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _collect(parameter: Json, paths: _Paths, ended: Ended) -> None:
    origin = parameter.get("valueFrom", {})
    if "path" not in origin:
        raise UnknownFeature(f"the output parameter {parameter['name']!r} of a pod without a path")
    file = Path(paths.real(origin["path"]))
    if file.is_file():
        ended.parameters[parameter["name"]] = paths.pretended(file.read_text().removesuffix("\n"))
    elif "default" in origin:
        ended.parameters[parameter["name"]] = origin["default"]
    elif not ended.problem:
        ended.problem = f"failed to read output parameter {parameter['name']!r}: {origin['path']}: no such file"


def _process(
    machine: Machine, here: Path, facts: Json, container: Json, paths: _Paths, log: Path, deadline_s: float | None
) -> int:
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "platform")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(here / "work"),
        "TMPDIR": str(here / "tmp"),
        "LANG": "C.UTF-8",
        **machine.environment,
    }
    variables: dict[str, str] = {}
    for variable in container.get("env", []):
        value = _variable(machine, facts, variable, variables)
        if value is not None:
            variables[variable["name"]] = value
    words = [*container.get("command", []), *container.get("args", [])]
    if not container.get("command"):
        raise UnknownFeature("a container whose command only its image knows")
    whole = {
        key: value
        for source in container.get("envFrom", [])
        for key, value in machine.secrets.get(source["secretRef"]["name"], {}).items()
    }
    # The kubelet expands in a command what it knows by then: the variables, and those of whole secrets.
    words = [expand(word, whole | variables) for word in words]
    for command, own in _LAUNCHERS.items():
        if tuple(words[: len(command)]) == command:
            words = [*own, *words[len(command) :]]
            break
    else:
        words = [paths.real(word) for word in words]
    environment |= whole | {name: paths.real(value) for name, value in variables.items()}
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                words,
                env=environment,
                cwd=here / "work",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ArgoError(f"failed to find name in PATH: {words[0]!r}") from error
        try:
            return process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait() + 256


def _variable(machine: Machine, facts: Json, variable: Json, variables: dict[str, str]) -> str | None:
    if "valueFrom" not in variable:
        return expand(variable.get("value", ""), variables)
    [(kind, source)] = variable["valueFrom"].items()
    if kind == "fieldRef":
        match = re.fullmatch(r"metadata\.(?:(name|uid)|(labels|annotations)\['([^']+)'\])", source["fieldPath"])
        if match is None:
            raise UnknownFeature(f"the field {source['fieldPath']!r}")
        if match[1] is not None:
            return str(facts["metadata"][match[1]])
        return str(facts["metadata"].get(match[2], {}).get(match[3], ""))
    if kind not in {"secretKeyRef", "configMapKeyRef"}:
        raise UnknownFeature(f"the variable {variable['name']!r} from {kind}")
    data = dict(_keys(machine, source["name"], bool(source.get("optional"))))
    if source["key"] not in data and not source.get("optional"):
        raise ArgoError(f"couldn't find key {source['key']} in {source['name']}")
    return data.get(source["key"])


def expand(text: str, variables: dict[str, str]) -> str:
    """Return a text as the kubelet hands it to a container: `$(NAME)` expanded where it is known, `$$` halved."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", replacement, text)
