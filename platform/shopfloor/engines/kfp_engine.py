"""The `kfp` engine: a run of a Kubeflow Pipelines backend, through KFP's own client.

The pipeline is sent as it was compiled, with what the profile says of the cluster added to it: the team's queue and
priority, the settings and the secret of the platform's steps. What a pipeline says itself goes before the profile.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from shopfloor.engines.base import Job, RunState
from shopfloor.errors import ConflictError, NotFoundError, ServiceError, ShopfloorError, UsageError
from shopfloor.settings import Settings

TOKEN_VARIABLE = "KFP_TOKEN"  # noqa: S105  the variable's name
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
_LOCAL_ONLY = {"SHOPFLOOR_PROJECT_ROOT", "SHOPFLOOR_STATE_DIR", "SHOPFLOOR_STEP_RUN_ID", "SHOPFLOOR_PUBLISHED_DIR"}
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Keys of the environment secret that steps get where they exist: KFP takes no secret as a whole."""
_STATES: dict[str, RunState] = {
    "RUNTIME_STATE_UNSPECIFIED": "pending",
    "PENDING": "pending",
    "RUNNING": "running",
    "PAUSED": "running",
    "CANCELING": "running",
    "SUCCEEDED": "succeeded",
    "SKIPPED": "succeeded",
    "FAILED": "failed",
    "CANCELED": "killed",
}
_Answer = TypeVar("_Answer")


class KfpEngine:
    """Runs pipelines on a Kubeflow Pipelines backend; a run is named by the backend's run id."""

    name: ClassVar[str] = "kfp"

    def __init__(self, settings: Settings) -> None:
        """Use the API server at `settings.cluster.kfp_url`; nothing is asked yet."""
        self._settings = settings
        self._url = settings.cluster.kfp_url.rstrip("/")

    def manifest(self, job: Job) -> str:
        """Return, as YAML of two documents, exactly the pipeline that `submit` would send.

        Raises:
            UsageError: The pipeline is not one.
        """
        import yaml

        ir, platforms = self._configured(job)
        documents = [ir, platforms] if platforms else [ir]
        return str(yaml.safe_dump_all(documents, sort_keys=True, width=120))

    def submit(self, job: Job) -> str:
        """Begin a run, or with a schedule a recurring run, and return its id.

        The experiment is the use case, or the pipeline where there is none.

        Raises:
            UsageError: The backend refuses the pipeline.
            ConflictError: The name is taken.
            ServiceError: The backend does not answer, or refuses the token.
        """
        experiment = str(job.arguments.get("use_case") or job.name)
        name = f"{job.name}-{job.run_id[:12]}" if job.run_id else job.name
        with tempfile.TemporaryDirectory() as directory:
            package = Path(directory) / "pipeline.yaml"
            package.write_text(self.manifest(job), encoding="utf-8")
            options = {
                "job_name": name,
                "pipeline_package_path": str(package),
                "params": job.arguments,
                "service_account": self._settings.cluster.service_account,
            }
            if job.cron is None:

                def begin(client: Any) -> Any:
                    found = client.create_experiment(experiment, namespace=self._settings.cluster.namespace)
                    return client.run_pipeline(found.experiment_id, **options).run_id
            else:
                # KFP's schedules have six fields, the first for the seconds.
                schedule = f"0 {job.cron}"

                def begin(client: Any) -> Any:
                    found = client.create_experiment(experiment, namespace=self._settings.cluster.namespace)
                    made = client.create_recurring_run(found.experiment_id, cron_expression=schedule, **options)
                    return made.recurring_run_id

            return str(self._answered(begin))

    def status(self, engine_run: str) -> RunState:
        """Return how the run stands.

        Raises:
            NotFoundError: The backend has no such run.
            ServiceError: It does not answer, or refuses the token.
        """
        run = self._answered(lambda client: client.get_run(engine_run))
        return _STATES.get(str(run.state), "running")

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Say where the pods' logs are: the backend's API has none; the record of each step holds its own.

        Raises:
            UsageError: Always, with the command that shows them.
        """
        namespace = self._settings.cluster.namespace
        raise UsageError(
            "Kubeflow Pipelines gives no logs by its API.",
            f"While it runs: kubectl logs -n {namespace} -l pipeline/runid={engine_run} -c main --prefix"
            f"{' -f' if follow else ''}",
        )

    def stop(self, engine_run: str) -> None:
        """End the run.

        Raises:
            NotFoundError: The backend has no such run.
            ServiceError: It does not answer, or refuses the token.
        """
        self._answered(lambda client: client.terminate_run(engine_run))

    def retry(self, engine_run: str) -> str:
        """Let the backend run again what failed, with the code that it has.

        Raises:
            NotFoundError: The backend has no such run.
            UsageError: It has not failed.
            ServiceError: It does not answer, or refuses the token.
        """
        self._answered(lambda client: client._run_api.run_service_retry_run(engine_run))
        return engine_run

    def _configured(self, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the pipeline and its platform configuration with what the profile adds."""
        cluster = self._settings.cluster
        ir, platforms = copy.deepcopy(job.ir), copy.deepcopy(job.platforms)
        wanted = {QUEUE_LABEL: cluster.queue, PRIORITY_LABEL: cluster.priority_class}
        labels = {name: value for name, value in wanted.items() if value}
        executors: dict[str, Any] = ir.get("deploymentSpec", {}).get("executors", {})
        components = {
            component["executorLabel"]: component
            for component in ir.get("components", {}).values()
            if "executorLabel" in component
        }
        uncached = _uncached(ir)
        for name, executor in executors.items():
            container = executor.get("container")
            if container is None:
                continue
            ours = container.get("image") == cluster.image
            if ours:
                self._prepare(job, components[name], container, job.use_cache and name not in uncached)
            secret = cluster.environment_secret if ours else None
            if labels or secret:
                kubernetes = platforms.setdefault("platforms", {}).setdefault("kubernetes", {})
                config = kubernetes.setdefault("deploymentSpec", {}).setdefault("executors", {}).setdefault(name, {})
                _configure(config, labels, secret)
        if not job.use_cache:
            _forbid_cache(ir)
        return ir, platforms

    def _prepare(self, job: Job, component: dict[str, Any], container: dict[str, Any], cache: bool) -> None:
        """Give a step of the platform image its settings, and put the content key in front of its command."""
        own = [*container.get("command", []), *container.get("args", [])]
        outputs = component.get("outputDefinitions", {})
        said = {item["name"]: item.get("value", "") for item in container.get("env", [])}
        task = {
            "command": own,
            "environment": said,
            "cache": cache,
            "outputs": {
                "parameters": {name: one["parameterType"] for name, one in outputs.get("parameters", {}).items()},
                "artifacts": {name: one.get("artifactType", {}) for name, one in outputs.get("artifacts", {}).items()},
            },
        }
        if "--executor_input" in own:
            encoded = base64.b64encode(json.dumps(task, sort_keys=True).encode()).decode()
            container["command"] = ["python3", "-m", "shopfloor.engines.kfp_step", encoded]
            container["args"] = own
        values = {name: value for name, value in job.environment.items() if name not in _LOCAL_ONLY}
        values["SHOPFLOOR_STATE_DIR"] = "/tmp/shopfloor"  # noqa: S108  of the step's own container
        values["SHOPFLOOR_STEP"] = _step_name(component)
        if job.run_id:
            values["SHOPFLOOR_RUN_ID"] = job.run_id
        container["env"] = [{"name": name, "value": value} for name, value in sorted({**values, **said}.items())]

    def _answered(self, ask: Callable[[Any], _Answer]) -> _Answer:
        """Ask KFP's client, and say in one line what went wrong."""
        import kfp_server_api
        import urllib3

        token = self._settings.cluster.token(TOKEN_VARIABLE)
        try:
            # The client prints links on stdout, which belongs to the command's result, and warns of its own age.
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ask(self._client(token))
        except ShopfloorError:
            raise
        except kfp_server_api.ApiException as error:
            raise self._refused(error, token) from error
        except (urllib3.exceptions.HTTPError, OSError, TimeoutError) as error:
            raise ServiceError(
                f"The Kubeflow Pipelines API {self._url} does not answer.",
                "Look whether it is up and cluster.kfp_url is right, then try again.",
            ) from error

    def _client(self, token: str) -> Any:
        from kfp import Client

        client = Client(host=self._url, namespace=self._settings.cluster.namespace, existing_token=token or None)
        rest = client._run_api.api_client.rest_client
        ask = rest.request

        def ask_in_time(*arguments: Any, **named: Any) -> Any:
            named["_request_timeout"] = named.get("_request_timeout") or self._settings.request_timeout_s
            return ask(*arguments, **named)

        # KFP's client waits without an end, and tries again by itself what may have been done already.
        rest.request = ask_in_time
        rest.pool_manager.connection_pool_kw["retries"] = False
        return client

    def _refused(self, error: Any, token: str) -> ShopfloorError:
        try:
            body = json.loads(error.body or "{}")
            said = str(body.get("message") or body.get("error") or "")
        except (ValueError, AttributeError):
            said = ""
        said = " ".join(said.split())[:400]
        said = said.replace(token, "***") if token else said
        namespace = self._settings.cluster.namespace
        if error.status == 401:
            what = "refuses the token: it is wrong or has expired" if token else "wants a token"
            return ServiceError(
                f"The Kubeflow Pipelines API {self._url} {what}.",
                f"Put a token into ${TOKEN_VARIABLE} or the file cluster.token_file.",
            )
        if error.status == 403:
            return ServiceError(
                f"No right to run pipelines in the namespace {namespace}{': ' + said if said else ''}.",
                "Ask the platform team for it, or mend cluster.namespace.",
            )
        if error.status == 404:
            return NotFoundError(f"Kubeflow Pipelines does not know it{': ' + said if said else ''}.", "See runs list.")
        if error.status == 409:
            return ConflictError(f"Kubeflow Pipelines refuses: {said or 'the name is taken'}.", "Another was first.")
        if error.status in {400, 422}:
            return UsageError(f"Kubeflow Pipelines refuses it: {said or error.reason}.", "Mend the pipeline.")
        return ServiceError(
            f"The Kubeflow Pipelines API {self._url} failed with status {error.status}{': ' + said if said else ''}.",
            "See the server's own log.",
        )


def _configure(config: dict[str, Any], labels: dict[str, str], secret: str | None) -> None:
    """Add labels and the secret to an executor's platform configuration; what stands there already stays."""
    if labels:
        metadata = config.setdefault("podMetadata", {})
        metadata["labels"] = {**labels, **metadata.get("labels", {})}
    if secret:
        config.setdefault("secretAsEnv", []).append(
            {
                "secretName": secret,
                "keyToEnv": [{"secretKey": key, "envVar": key} for key in SECRET_KEYS],
                "optional": True,
            }
        )


def _uncached(ir: dict[str, Any]) -> set[str]:
    """Return the executors of tasks that are to take no stored result; tasks of one component share its executor."""
    components = ir.get("components", {})
    tasks = [
        task for dag in (ir["root"], *components.values()) for task in dag.get("dag", {}).get("tasks", {}).values()
    ]
    return {
        components[task["componentRef"]["name"]].get("executorLabel", "")
        for task in tasks
        if not task.get("cachingOptions", {}).get("enableCache")
    }


def _forbid_cache(ir: dict[str, Any]) -> None:
    """Let no task of the pipeline take the backend's own cached result."""
    dags = [ir["root"], *ir.get("components", {}).values()]
    for dag in dags:
        for task in dag.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}


def _step_name(component: dict[str, Any]) -> str:
    return str(component["executorLabel"]).removeprefix("exec-")
