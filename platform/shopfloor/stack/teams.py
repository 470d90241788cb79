"""Teams of a shared cluster: one small file each in `manifests/teams/`, held against the cluster and one another.

A team's file says what nobody can derive: its name, its members' group, its share of the GPUs, how urgent its runs are
and what it may spend. `team_manifests` makes the objects of it; Kubernetes, Kueue and the object store enforce them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
)

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.records import Record
from shopfloor.storage import write_atomically

FOLDER = Path("manifests") / "teams"
FLAVORS = Path("manifests") / "base" / "kueue"
"""Folder of Kueue's flavors, which say in their annotations how much of each the cluster has."""
SYSTEM = "shopfloor-system"
"""Namespace of what there is once."""
RESERVED = {SYSTEM, "argo", "kueue-system", "kuberay-system", "default", "secrets", "monitoring"}
"""Names that are no team's: namespaces of others, and folders beside those of the teams."""
LONGEST_NAME = 40
"""Characters of a team's name: names of objects are made of it, which hold 63."""
Priority = Literal["background", "normal", "production"]
"""Kueue's priority classes, in `manifests/base/kueue`."""
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_GROUP = re.compile(r"[^\s:][^\s]*")
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,63}")
_ANNOTATION = "shopfloor.io/"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quota(_File):
    """A team's share of a flavor in GPUs, or CPUs where the flavor has no GPU; memory and CPUs come in proportion."""

    nominal: NonNegativeInt
    """Part that is the team's own: lent while it is idle, and reclaimed."""
    borrowing: NonNegativeInt = 0
    """Most that it may borrow beyond that."""


class Budget(_File):
    """What a team may spend."""

    gpu_hours: NonNegativeFloat
    """GPU-hours in a calendar month, all flavors together."""


class Team(_File):
    """A team's file."""

    name: str
    """Name of its namespace, its queue, its account in MLflow and in the object store, and of its prefix there."""
    members: str
    """Group of its members, as the cluster's identity provider names it."""
    priority: Priority = "normal"
    """How urgent its runs are among themselves, where a run does not say."""
    quota: dict[str, Quota] = Field(min_length=1)
    """Shares by flavor, in the order in which they are tried after those without GPUs."""
    budget: Budget
    limits: dict[str, PositiveInt] = {}
    """Most runs at a time: `runs` of the team, the name of a pipeline of that pipeline; none where nothing is said."""
    host: str | None = None
    """Name by which its endpoints are asked from outside of the cluster; without one they are not."""

    @field_validator("limits")
    @classmethod
    def _keys(cls, value: dict[str, int]) -> dict[str, int]:
        """Refuse what can be no key of a ConfigMap, and so no pipeline's name in a label."""
        for name in value:
            if not _KEY.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a pipeline, nor `runs`")
        return value


class Flavor(Record):
    """A kind of node, and how much the cluster has of it at its largest."""

    name: str
    cpu: int
    memory_gib: int
    gpu: int = 0

    @property
    def units(self) -> int:
        """Number of what shares are counted in: GPUs, or CPUs where there is no GPU."""
        return self.gpu or self.cpu

    def resources(self, units: int) -> dict[str, str]:
        """Return Kubernetes' quantities of so many units, with their part of the nodes' CPUs and memory."""
        cpu, memory = (total * units // self.units for total in (self.cpu, self.memory_gib))
        return {"cpu": str(cpu), "memory": f"{memory}Gi", "nvidia.com/gpu": str(units if self.gpu else 0)}


def flavors(root: Path) -> dict[str, Flavor]:
    """Return the flavors by name, those without GPUs first.

    Raises:
        NotFoundError: There are no manifests of a cluster here.
        UsageError: One does not say how much there is of it.
    """
    pool = []
    for file in sorted((root / FLAVORS).glob("*-resourceflavor.yaml")):
        metadata = _document(root, file).get("metadata", {})
        numbers = {
            key.removeprefix(_ANNOTATION): str(value)
            for key, value in (metadata.get("annotations") or {}).items()
            if key.startswith(_ANNOTATION)
        }
        memory = re.fullmatch(r"([1-9]\d*)Gi", numbers.pop("memory", ""))
        content = {**numbers, "name": metadata.get("name"), "memory_gib": memory and memory[1]}
        try:
            pool.append(Flavor.model_validate(content))
        except ValidationError as error:
            raise UsageError(
                f"{file.relative_to(root)} does not say how much there is of it.",
                f"Annotations {_ANNOTATION}cpu, {_ANNOTATION}memory (in Gi) and, with GPUs, {_ANNOTATION}gpu.",
            ) from error
    if not pool:
        raise NotFoundError(
            f"There is no flavor in {FLAVORS}.", "The manifests of the cluster stand in the project: run it there."
        )
    return {flavor.name: flavor for flavor in sorted(pool, key=lambda flavor: (flavor.gpu > 0, flavor.name))}


def files(root: Path) -> list[Path]:
    """Return the teams' files, by name."""
    return [file for file in sorted((root / FOLDER).glob("*.yaml")) if file.name != "kustomization.yaml"]


def load(root: Path, groups: Sequence[str] | None = None) -> list[Team]:
    """Return all teams, by name, each held against the cluster and the others.

    Args:
        root: Of the project.
        groups: Names of all groups of the identity provider, where somebody has them.

    Raises:
        UsageError: A file is wrong, or what the teams have together is more than there is.
    """
    return _agreed(root, [_read(root, file) for file in files(root)], groups)


def _agreed(root: Path, teams: list[Team], groups: Sequence[str] | None) -> list[Team]:
    """Return these teams, if each can be and all together."""
    pool = flavors(root)
    owner: dict[str, Team] = {}
    hosts: dict[str, Team] = {}
    for team in teams:
        where = FOLDER / f"{team.name}.yaml"
        _require_group(where, team, groups, owner)
        _require_host(where, team, hosts)
        for name, share in team.quota.items():
            _require_share(where, name, share, pool)
    for name, flavor in pool.items():
        total = sum(team.quota[name].nominal for team in teams if name in team.quota)
        if total > flavor.units:
            shares = ", ".join(f"{team.name} {team.quota[name].nominal}" for team in teams if name in team.quota)
            raise UsageError(
                f"The teams' own shares of {name} are {total} together, and there are {flavor.units}: {shares}.",
                f"Take some away, or say in {FLAVORS}/{name}-resourceflavor.yaml that there is more.",
            )
    return teams


def add(root: Path, team: Team) -> Path:
    """Write the file of a new team, if all teams together stay right; otherwise nothing is written.

    Returns:
        The file.

    Raises:
        UsageError: The name is taken or cannot be one, or see `load`.
    """
    require_name(team.name)
    file = root / FOLDER / f"{team.name}.yaml"
    if file.exists():
        raise UsageError(
            f"The name {team.name!r} is taken: {file.relative_to(root)}.", "Choose another, or edit that file."
        )
    _agreed(root, [*load(root), team], None)
    content = {key: value for key, value in team.model_dump(mode="json", exclude_none=True).items() if value != {}}
    write_atomically(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True), 0o644)
    return file


def require_name(name: str) -> None:
    """Refuse what can be no team's name.

    Raises:
        UsageError: It is no DNS label, too long, or belongs to somebody else.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise UsageError(
            f"{name[:100]!r} can be no team's name.",
            f"Write a DNS label: a-z first, then a-z, 0-9 and -, {LONGEST_NAME} characters at most.",
        )
    if name in RESERVED or name.startswith("kube-"):
        raise UsageError(f"The name {name!r} is taken: it is no team's.", "Choose another.")


def validated(content: Mapping[str, object], where: str) -> Team:
    """Return a team of what a file or a command says.

    Args:
        content: Keys and values as in a file.
        where: Place that an error names.

    Raises:
        UsageError: A key is unknown or missing, or a value impossible.
    """
    try:
        return Team.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f", not {first['input']!r}"
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise UsageError(
            f"{where}: {field}: {message}{given}.", "docs/how-to/add-a-team.md says what a team's file holds."
        ) from error


def _read(root: Path, file: Path) -> Team:
    where = file.relative_to(root)
    team = validated(_document(root, file), str(where))
    require_name(team.name)
    if team.name != file.stem:
        raise UsageError(f"{where}: the team's name is {team.name!r}.", f"Call the file {team.name}.yaml.")
    return team


def _document(root: Path, file: Path) -> dict[str, Any]:
    where = file.relative_to(root)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line} cannot be read as YAML.", "Mend it.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{where} holds no keys with values.", "Mend it.")
    return content


def _require_group(where: Path, team: Team, groups: Sequence[str] | None, owner: dict[str, Team]) -> None:
    """Refuse a group that is nobody's, everybody's or another team's."""
    group = team.members
    if not _GROUP.fullmatch(group):
        raise UsageError(f"{where}: members: {group!r} names no group.", "Name that of the identity provider.")
    if group.startswith("system:"):
        raise UsageError(
            f"{where}: members: {group!r} is a group of Kubernetes' own, and no team.",
            "Name that of the identity provider.",
        )
    if groups is not None and group not in groups:
        raise UsageError(
            f"{where}: members: the group {group!r} is nobody's.", "The identity provider has no such one."
        )
    if group in owner:
        raise UsageError(
            f"{where}: members: the group {group!r} is that of team {owner[group].name}.", "Each team has its own."
        )
    owner[group] = team


def _require_host(where: Path, team: Team, owner: dict[str, Team]) -> None:
    """Refuse what can be no name of the DNS, or is another team's."""
    if team.host is None:
        return
    if not _HOST.fullmatch(team.host):
        raise UsageError(
            f"{where}: host: {team.host[:100]!r} is no name of the DNS.", "Write one such as vision.models.example.org."
        )
    if team.host in owner:
        raise UsageError(
            f"{where}: host: {team.host!r} is that of team {owner[team.host].name}.", "Each team has its own."
        )
    owner[team.host] = team


def _require_share(where: Path, name: str, share: Quota, pool: Mapping[str, Flavor]) -> None:
    flavor = pool.get(name)
    if flavor is None:
        raise UsageError(f"{where}: quota: there is no flavor {name!r}.", f"Flavors: {', '.join(pool)} (in {FLAVORS}).")
    if share.nominal > flavor.units:
        raise UsageError(
            f"{where}: quota: {name}: {share.nominal} is more than there is: {flavor.units}.",
            "Ask for less, or for another flavor.",
        )
    if share.nominal + share.borrowing > flavor.units:
        raise UsageError(
            f"{where}: quota: {name}: {share.nominal} and {share.borrowing} borrowed are more than there is:"
            f" {flavor.units}.",
            f"Borrow {flavor.units - share.nominal} at most.",
        )
