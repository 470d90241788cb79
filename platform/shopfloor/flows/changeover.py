"""What an upgrade changes in each kind of stack: the packages of this environment, or the image of the containers.

Both answer the same questions: what there is and what is wanted, what speaks against it, and how to stop, migrate and
start. `upgrade.py` says in which order.
"""

from __future__ import annotations

import contextlib
import json
from functools import cached_property

from shopfloor.backup.compose import compose, docker, env_file
from shopfloor.backup.databases import Postgres
from shopfloor.data import definitions
from shopfloor.errors import UsageError
from shopfloor.flows import backup
from shopfloor.flows.backup import IMAGE, Progress
from shopfloor.records import Record
from shopfloor.settings import Settings
from shopfloor.stack import installation, lifecycle, secrets, services, versions
from shopfloor.stack.services import SERVICES, TITLES
from shopfloor.stack.versions import SCHEMAS, Release

_BEFORE = "before-upgrade"
"""Tag that keeps an image whose name another one has got."""


class Part(Record):
    """Something that an upgrade may change."""

    name: str
    present: str
    """Version, schema or image as it is; empty where nothing runs or is kept."""
    wanted: str

    def differs(self) -> bool:
        """Tell whether it is there and is to be another one."""
        return self.present not in ("", self.wanted)


class Packages:
    """The embedded stack, which runs on the packages of this environment."""

    image = ""
    """Image that is wanted; empty where there are none."""

    def __init__(self, settings: Settings) -> None:
        """Remember the settings."""
        self._settings = settings

    def parts(self) -> list[Part]:
        """Return the services as they run, and the schema of MLflow's database."""
        statuses = {status.name: status.version for status in lifecycle.status(self._settings).services}
        parts = [Part(name=TITLES[name], present=statuses[name], wanted=versions.installed(name)) for name in SERVICES]
        present = versions.schema_of(versions.database(self._settings))
        return [*parts, _schema("mlflow", present, versions.release())]

    def problems(self) -> list[str]:
        """Return where a component is not what the lock says, or older than the database."""
        pins: dict[str, str] = {}
        with contextlib.suppress(OSError):  # `shopfloor doctor` says it
            pins = installation.read_lock(self._settings.lock_file)
        drift = installation.find_drift({name: pins[name] for name in versions.COMPONENTS if name in pins}, _here())
        words = [f"{item.name} {item.installed} is installed, and the lock says {item.locked}." for item in drift]
        return words + _unknown({"mlflow": versions.schema_of(versions.database(self._settings))}, versions.release())

    def stop(self) -> None:
        """Stop MLflow, and Ray where another version of it is installed."""
        ray = next(part for part in self.parts() if part.name == TITLES["ray"])
        lifecycle.down(self._settings, SERVICES if ray.differs() else ("mlflow",))

    def undo_stop(self) -> None:
        """Start it again; refused where the packages want another schema."""
        lifecycle.up(self._settings)

    def migrate(self) -> None:
        """Migrate MLflow's database, and let Feast read its registry."""
        versions.migrate(self._settings)
        definitions.read(self._settings)

    def start(self, progress: Progress) -> tuple[Settings, dict[str, str]]:
        """Start what `shopfloor up` starts."""
        return backup.start(self._settings, progress)

    def keep(self) -> str:
        """Return nothing: the packages of before are gone already."""
        return ""

    def use(self, image: str) -> None:
        """Do nothing."""


class Containers:
    """The stack of docker-compose.yml, which runs on an image."""

    def __init__(self, settings: Settings, image: str) -> None:
        """Remember which image is wanted.

        Args:
            settings: The profile.
            image: Its name; empty for the one that compose's files name.

        Raises:
            ServiceError: Docker does not answer.
        """
        self._settings = settings
        config = json.loads(compose(settings, "config", "--format", "json"))
        self._project = config["name"]
        self.image = image or config["services"]["mlflow"]["image"]

    @cached_property
    def _release(self) -> Release:
        command = ("run", "--rm", "--network", "none", self.image, "python", "-m", "shopfloor.stack.versions")
        return Release.model_validate_json(docker(self._settings, *command))

    def parts(self) -> list[Part]:
        """Return the image, the services as they answer, and the schemas of MLflow's databases."""
        wanted, present = self._release, " ".join(self._running())
        parts = [Part(name="image", present=present, wanted=f"{self.image} {self._id(self.image)}")]
        for name in SERVICES:
            present = services.version_of(name, self._settings)
            parts.append(Part(name=TITLES[name], present=present, wanted=wanted.versions[name]))
        return parts + [_schema(name, present, wanted) for name, present in self._schemas().items()]

    def problems(self) -> list[str]:
        """Return where the image is not what is installed here, or older than a database."""
        wanted, here = self._release.versions, _here()
        words = [
            f"{name} is {here[name]} on this machine, and {wanted[name]} in {self.image}."
            for name in versions.COMPONENTS
            if name in here and here[name] != wanted[name]
        ]
        return words + _unknown(self._schemas(), self._release)

    def stop(self) -> None:
        """Stop MLflow, and a migration whose upgrade was killed; Ray goes on until its containers are made anew."""
        compose(self._settings, "stop", "mlflow")
        labels = {"project": self._project, "service": "migrate", "oneoff": "True"}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        if migrations := docker(self._settings, "ps", "--all", "--quiet", *filters).split():
            docker(self._settings, "rm", "--force", *migrations)

    def undo_stop(self) -> None:
        """Start the container that there is."""
        compose(self._settings, "start", "mlflow")

    def migrate(self) -> None:
        """Let the image migrate MLflow's databases, and let its Feast read the registry."""
        once = ("run", "--rm", "-T", "--no-deps")
        compose(self._settings, *once, "migrate")
        compose(self._settings, *once, "ray-head", "python", "-m", "shopfloor.data.definitions")

    def start(self, progress: Progress) -> tuple[Settings, dict[str, str]]:
        """Make the containers anew, as many workers as there are."""
        workers = len(compose(self._settings, "ps", "--all", "--quiet", "ray-worker").split())
        return backup.start(self._settings, progress, "--scale", f"ray-worker={workers}")

    def keep(self) -> str:
        """Return the name of the image that runs; one whose name another image has got gets a tag."""
        name, image_id = self._running()
        if self._id(name) != image_id:
            name = f"{name.partition('@')[0].rpartition(':')[0]}:{_BEFORE}"
            docker(self._settings, "tag", image_id, name)
        return name

    def use(self, image: str) -> None:
        """Name the image in compose's file of variables."""
        secrets.set_variable(env_file(self._settings), IMAGE, image)

    def _running(self) -> list[str]:
        """Return name and id of the image that MLflow's container was made of."""
        containers = compose(self._settings, "ps", "--all", "--quiet", "mlflow").split()
        if not containers:
            raise UsageError("The stack does not run.", "Start it as it was: docker compose up -d --wait")
        return docker(self._settings, "inspect", "--format", "{{.Config.Image}} {{.Image}}", containers[0]).split()

    def _id(self, image: str) -> str:
        return docker(self._settings, "images", "--no-trunc", "--quiet", image).strip()

    def _schemas(self) -> dict[str, str]:
        return {name: Postgres(self._settings, name).schema(table) for name, (_, table) in SCHEMAS.items()}


Changeover = Packages | Containers
"""How one kind of stack gets from what there is to what is wanted."""


def _here() -> dict[str, str]:
    return {name: version for name in versions.COMPONENTS if (version := versions.installed(name))}


def _schema(database: str, present: str, wanted: Release) -> Part:
    return Part(name=f"schema of {database}", present=present, wanted=wanted.schemas[database][0])


def _unknown(schemas: dict[str, str], wanted: Release) -> list[str]:
    """Return in words which databases a newer MLflow wrote."""
    newer = [name for name, schema in schemas.items() if schema not in ("", *wanted.schemas[name])]
    return [versions.skew(name, schemas[name], wanted) for name in newer]
