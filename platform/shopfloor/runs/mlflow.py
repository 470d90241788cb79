"""The one way to ask MLflow: its REST API with credentials and a time limit, and the import of its own client.

MLflow's client costs three seconds to import and tries a request for minutes; `status`, `plan` and a replica that
follows its assignment cannot wait for either. What answers is told apart: MLflow itself (by its `error_code`), MLflow
that refuses the caller, something else at that address, and nobody.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from shopfloor.environment import NO_REPORTS
from shopfloor.errors import AccessError, NotFoundError, ServiceError, ShopfloorError, first_line
from shopfloor.settings import Settings

API, API_3 = "/api/2.0/mlflow/", "/api/3.0/mlflow/"
"""Roots of MLflow's REST API: of all that we ask, and of its roles."""
PARENT = "mlflow.parentRunId"
"""Tag of a run: the run that it is part of."""
CLASSES = "classes"
"""Key of a registered version's metadata: the classes of a multiclass model, sorted."""
COLUMNS = "columns"
"""Key of a registered version's metadata: what its signature does not say of columns (`kind`, `values`, `closed`,
`length`), by name."""
EXTRA_FILES = "extra_files"
"""Folder of a model for what is logged with it beside its own files."""
RUN_KEY = "shopfloor.run_key"
"""Tag of a run: hash of what was asked for, the same for the same run again."""
POD_USAGE, JOB_USAGE = "shopfloor.usage", "shopfloor.usage_job"
"""Tags of a step that Kueue admitted: what its own pod had, and what the RayJob that it brought along had."""
_ABSENT = "RESOURCE_DOES_NOT_EXIST"


class RefusedError(ServiceError):
    """MLflow answered that it will not do what was asked, and why.

    Args:
        message: What MLflow says.
        error_code: MLflow's own, e.g. `RESOURCE_ALREADY_EXISTS`.
    """

    def __init__(self, message: str, error_code: str) -> None:
        super().__init__(message, "")
        self.error_code = error_code


class Mlflow:
    """One MLflow server, asked by its REST API."""

    def __init__(self, tracking_uri: str, timeout_s: float, session: Any = None, api: str = API) -> None:
        """Remember where the server is; nothing is asked yet.

        Args:
            tracking_uri: Its address.
            timeout_s: How long one answer may take.
            session: Of `requests`, which keeps connections open between questions; without it each opens its own.
            api: Root of the paths that are asked.
        """
        self.tracking_uri = tracking_uri.rstrip("/")
        self._api = api
        self._timeout_s = timeout_s
        self._session = session

    def get(self, path: str, expects: str, **parameters: Any) -> Any:
        """Return the field `expects` of the answer to a GET.

        Args:
            path: Below the API's root, e.g. `registered-models/get`.
            expects: Field that every answer of MLflow to this question has.
            **parameters: Of the query.

        Raises:
            NotFoundError: MLflow says that there is no such thing.
            AccessError: MLflow refuses the credentials, or what they may do.
            RefusedError: MLflow says another error.
            ServiceError: Nobody answers, or something that is no MLflow server, or MLflow failed.
        """
        content = self._ask("GET", path, params=parameters)
        if expects not in content:
            raise self._foreign(f"an answer without {expects!r}")
        return content[expects]

    def search(self, path: str, finds: str, **parameters: Any) -> list[Any]:
        """Return the list `finds` of the answer to a GET; MLflow leaves an empty one out. See `get` for the errors."""
        return list(self._ask("GET", path, params=parameters).get(finds, []))

    def post(self, path: str, content: dict[str, Any], method: str = "POST") -> dict[str, Any]:
        """Return the answer to a request with a JSON body; see `get` for the errors."""
        return self._ask(method, path, json=content)

    def version(self) -> str:
        """Return the version that the server says it has; empty where it does not say."""
        import requests

        with contextlib.suppress(requests.RequestException):
            ask = (self._session or requests).get
            answer = ask(f"{self.tracking_uri}/version", timeout=self._timeout_s, **credentials())
            return str(answer.text).strip() if answer.ok else ""
        return ""

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        import requests

        session = self._session or requests
        try:
            answer = session.request(
                method,
                f"{self.tracking_uri}{self._api}{path}",
                timeout=self._timeout_s,
                allow_redirects=False,  # a login page is no answer
                **options,
                **credentials(),
            )
        except requests.RequestException as error:
            raise ServiceError(
                f"The MLflow server at {self.tracking_uri} does not answer: {type(error).__name__}.",
                "`shopfloor up` starts that of the embedded stack.",
            ) from error
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.status_code in (401, 403):
            raise _denied(answer.status_code == 401, f"The MLflow server at {self.tracking_uri}")
        if answer.status_code >= 500:
            raise ServiceError(
                f"The MLflow server at {self.tracking_uri} answers {answer.status_code}: {_words(answer, content)}",
                "Its log says why.",
            )
        if not isinstance(content, dict):
            raise self._foreign(f"status {answer.status_code} and no JSON object")
        if answer.ok and answer.status_code < 300:
            return content
        code = content.get("error_code")
        if not isinstance(code, str):
            raise self._foreign(f"status {answer.status_code} without an error code")
        if code == _ABSENT:
            raise NotFoundError(f"MLflow has no such thing: {_words(answer, content)}", "")
        raise RefusedError(f"MLflow refuses: {_words(answer, content)}", code)

    def _foreign(self, what: str) -> ServiceError:
        return ServiceError(f"What answers at {self.tracking_uri} is no MLflow server: {what}.", "Mend tracking_uri.")


def denied(error: BaseException) -> AccessError | None:
    """Return an exception of MLflow's own client as an error of ours, where it says that the caller may not do that."""
    code = _code(error)
    if code not in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        return None
    return _denied(code == "UNAUTHENTICATED", "The MLflow server")


def failed(error: BaseException) -> ShopfloorError | None:
    """Return an exception of MLflow's own client as an error of ours, where the server or its store failed."""
    if _code(error) in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"}:
        return ServiceError(
            f"MLflow did not do what was asked: {first_line(error, 300)}.",
            "`shopfloor status` says what does not answer; MLflow's log says more.",
        )
    return denied(error)


def _code(error: BaseException) -> str | None:
    return getattr(error, "error_code", None) if type(error).__module__ == "mlflow.exceptions" else None


def _denied(unknown: bool, server: str) -> AccessError:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if unknown:
        return AccessError(
            f"{server} does not accept " + (f"the password of {user!r}." if user else "a request without credentials."),
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    return AccessError(
        f"{server} does not let {user or 'this user'!r} do that.", "Ask who administers it for the permission."
    )


def tags_of(thing: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a model, a version or a run's data, as MLflow's REST API has them."""
    return {tag["key"]: tag.get("value", "") for tag in thing.get("tags", [])}


def aliases_of(model: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of a model by their aliases, as MLflow's REST API has them."""
    return {item["alias"]: str(item["version"]) for item in model.get("aliases", [])}


def by_row(answers: Any, rows: int) -> Any:
    """Return answers an item a row: those of a model that answers a list for each of several names, as objects.

    Args:
        answers: What a model answered, in whatever form.
        rows: How many were asked.
    """
    if not isinstance(answers, Mapping) or any(len(values) != rows for values in answers.values()):
        return answers
    lists = (values.tolist() if hasattr(values, "tolist") else list(values) for values in answers.values())
    return [dict(zip(answers, row, strict=True)) for row in zip(*lists, strict=True)]


def no_version(model: str, version: str) -> NotFoundError:
    """Return what is raised of a version that the registry does not hold."""
    return NotFoundError(
        f"There is no version {version} of a model {model!r}.", "`shopfloor models list` shows what there is."
    )


def version_of(mlflow: Mlflow, model: str, version: str) -> dict[str, Any]:
    """Return what MLflow says of a version.

    Raises:
        NotFoundError: There is no such version.
        ServiceError: MLflow does not answer, or refuses.
    """
    try:
        model_version: dict[str, Any] = mlflow.get("model-versions/get", "model_version", name=model, version=version)
    except NotFoundError as error:
        raise no_version(model, version) from error
    except AccessError:
        # Of a model that is not registered, a server with users tells so to administrators only.
        if not _is_registered(mlflow, model):
            raise no_version(model, version) from None
        raise
    return model_version


def _is_registered(mlflow: Mlflow, model: str) -> bool:
    try:
        registered_model(mlflow, model)
    except NotFoundError:
        return False
    return True


def registered_model(mlflow: Mlflow, name: str) -> dict[str, Any]:
    """Return what MLflow says of a registered model.

    Raises:
        NotFoundError: There is none of that name that the caller may see.
        AccessError: The server does not let the caller in.
        ServiceError: MLflow does not answer, or refuses.
    """
    try:
        model: dict[str, Any] = mlflow.get("registered-models/get", "registered_model", name=name)
    except AccessError:
        # Where nobody may see what others made, a server refuses a name that nobody has as well.
        if mlflow.search("registered-models/search", "registered_models", filter=f"name='{name}'", max_results=1):
            raise
        raise NotFoundError(f"MLflow has no model {name!r} that we may see.", "") from None
    return model


def version_exists(mlflow: Mlflow, model: str, version: str) -> bool:
    """Tell whether the registry holds a version.

    Raises:
        ServiceError: MLflow does not answer, or refuses.
    """
    try:
        version_of(mlflow, model, version)
    except NotFoundError:
        return False
    return True


def credentials() -> dict[str, Any]:
    """Return what MLflow's own client sends, from the same variables, as options of `requests`."""
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {"headers": {"Authorization": f"Bearer {token}"}} if token else {}


def _words(answer: Any, content: Any) -> str:
    text = str(content.get("message", "")) if isinstance(content, dict) else str(answer.text)
    return " ".join(text.split())[:300] or "nothing more"


def import_mlflow() -> Any:
    """Return the module `mlflow`, its request header plugins collected without Feast's.

    Every MLflow client asks its plugins for request headers, and Feast is one: it adds the tokens of Feast's own auth
    manager, which nobody uses here, and costs each process that talks to MLflow five seconds and 100 MiB. MLflow has no
    switch for it, so the plugin is left out while MLflow collects them.
    """
    os.environ.update(NO_REPORTS)
    import mlflow
    from mlflow.utils import plugins

    collect = plugins.get_entry_points
    plugins.get_entry_points = lambda group: [point for point in collect(group) if not point.value.startswith("feast.")]
    try:
        import mlflow.tracking.request_header.registry
    finally:
        plugins.get_entry_points = collect
    return mlflow


def migrate(database_uri: str) -> None:
    """Do what `mlflow db upgrade` does, in this process: where it is killed, no migration goes on behind it."""
    import_mlflow()
    from mlflow.db import commands

    commands.main(["upgrade", database_uri], standalone_mode=False)


def connect(settings: Settings) -> Any:
    """Return an `MlflowClient` of the tracking server, after quick questions that only MLflow answers.

    Raises:
        AccessError: It refuses the credentials.
        ServiceError: Nobody answers, or something that is no MLflow server, or MLflow failed, or is older than ours.
    """
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    mlflow.search("registered-models/search", "registered_models", max_results=1)
    _refuse_older(settings.tracking_uri, mlflow.version())
    return client_of(settings)


def _refuse_older(tracking_uri: str, server: str) -> None:
    """Refuse a server that may lack what our client asks of it; a newer one answers older clients."""
    from packaging.version import InvalidVersion, Version

    client = metadata.version("mlflow")
    with contextlib.suppress(InvalidVersion):
        if Version(server).release[:2] < Version(client).release[:2]:
            raise ServiceError(
                f"The MLflow server at {tracking_uri} is {server}, older than the client here, {client}.",
                "`shopfloor upgrade` brings a stack of ours to the client's version.",
            )


def client_of(settings: Settings) -> Any:
    """Return an `MlflowClient` of the tracking server, as it is: a step whose run began has seen it answer."""
    return import_mlflow().MlflowClient(tracking_uri=settings.tracking_uri, registry_uri=settings.tracking_uri)


def beside_model(settings: Settings, model: str, version: str, file: str, directory: Path) -> Path | None:
    """Copy a file that was logged beside a version's model, and return where it is; `None` where there is none.

    Args:
        settings: Say where the registry is.
        model: Name of the registered model.
        version: A version that there is.
        file: Its name.
        directory: Where to put it.

    Raises:
        ServiceError: MLflow, or where it keeps files, does not answer.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

    mlflow = import_mlflow()
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # for one small file
    mlflow.set_tracking_uri(settings.tracking_uri)
    folder = f"models:/{model}/{version}/{EXTRA_FILES}"
    try:
        if all(one.path != f"{EXTRA_FILES}/{file}" for one in mlflow.artifacts.list_artifacts(artifact_uri=folder)):
            return None
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{folder}/{file}", dst_path=str(directory)))
    except Exception as error:  # each kind of store has its own
        raise ServiceError(
            f"The files of version {version} of {model} cannot be read: {first_line(error, 300)}.",
            "Look at MLflow's artifacts.",
        ) from error


@contextlib.contextmanager
def lookup(client: Any) -> Iterator[None]:
    """Tell what does not exist from what cannot be said, where MLflow's own client is asked within the block.

    Raises:
        NotFoundError: MLflow says that there is no such thing; an alias or a version that it has not, it calls invalid.
        ServiceError: MLflow, or where it keeps files, does not answer, or refuses.
    """
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        if getattr(error, "error_code", "") in {_ABSENT, "INVALID_PARAMETER_VALUE"}:
            raise NotFoundError(f"MLflow has no such thing: {first_line(error, 300)}.", "") from error
        raise denied(error) or ServiceError(
            f"The MLflow server at {client.tracking_uri} cannot say: {first_line(error, 300)}.",
            "See `shopfloor status`.",
        ) from error


def add_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """Give a run the parameters that it lacks: MLflow refuses to change one."""
    from mlflow.entities import Param

    present = client.get_run(run_id).data.params
    missing = [Param(name, str(value)[:6000]) for name, value in params.items() if name not in present]
    client.log_batch(run_id, params=missing)
