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
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from shopfloor.engines.base import KFP_RUN, Job, RunState
from shopfloor.engines.manifests import text_of
from shopfloor.engines.refusals import Api
from shopfloor.environment import elsewhere
from shopfloor.errors import NotFoundError, ServiceError, ShopfloorError
from shopfloor.pipeline import ir
from shopfloor.pipeline.results import KEY_VARIABLE
from shopfloor.records import StepRecord
from shopfloor.settings import Settings

TOKEN_VARIABLE = "KFP_TOKEN"  # noqa: S105  the variable's name
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
RUN_LABEL = "pipeline/runid"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
SECRET_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    KEY_VARIABLE,
)
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
_POD = "-system-container-impl-"
"""Part of the names of the pods that run components, not of those that prepare for them."""
_LOG_PATH = "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log"
"""Path of a pod's log. The backend's OpenAPI document lacks it, so its client has no call for it. It cannot follow."""
POLL_S = 5.0
_Answer = TypeVar("_Answer")


class KfpEngine:
    """Runs pipelines on a Kubeflow Pipelines backend; a run is named by the backend's run id."""

    name: ClassVar[str] = "kfp"

    def __init__(self, settings: Settings) -> None:
        """Use the API server at `settings.cluster.kfp_url`; nothing is asked yet."""
        self._settings = settings
        self._namespace = settings.cluster.namespace
        self._api = Api(
            "Kubeflow Pipelines API",
            settings.cluster.kfp_url.rstrip("/"),
            self._namespace,
            TOKEN_VARIABLE,
            "cluster.kfp_url",
        )

    def manifest(self, job: Job) -> str:
        """Return, as YAML of two documents, exactly the pipeline that `submit` would send.

        Raises:
            UsageError: The pipeline is not one.
        """
        pipeline, platforms = self._configured(job)
        return text_of(*([pipeline, platforms] if platforms else [pipeline]), sort_keys=True)

    def submit(self, job: Job) -> str:
        """Begin a run, or with a schedule a recurring run, and return its id.

        The experiment is the use case, or the pipeline where there is none.

        Raises:
            UsageError: The backend refuses the pipeline.
            ConflictError: The name is taken.
            ServiceError: The backend does not answer, or refuses the token.
        """
        experiment = str(job.arguments.get("use_case") or job.name)
        name = f"{job.name}-{job.run_id[:12]}" if job.run_id and not job.cron else job.name
        with tempfile.TemporaryDirectory() as directory:
            package = Path(directory) / "pipeline.yaml"
            package.write_text(self.manifest(job), encoding="utf-8")
            options = {
                "job_name": name,
                "pipeline_package_path": str(package),
                "params": job.arguments,
                "service_account": self._settings.cluster.service_account,
            }
            return str(self._answered(lambda client: self._begin(client, experiment, job, options), "create runs"))

    def _begin(self, client: Any, experiment: str, job: Job, options: dict[str, Any]) -> str:
        """Create the run or the recurring run in its experiment and return its id."""
        experiment_id = self._experiment(client, experiment)
        if job.cron is not None:
            # KFP's schedules have six fields, the first for the seconds.
            answer = client.create_recurring_run(experiment_id, cron_expression=f"0 {job.cron}", **options)
            return str(answer.recurring_run_id)
        try:
            return str(client.run_pipeline(experiment_id, **options).run_id)
        except _lost():
            # The answer can be lost on the way; the name holds the id of the MLflow run.
            present = self._find(client, experiment_id, options["job_name"]) if job.run_id else None
            if present is None:
                raise
            return present

    def _experiment(self, client: Any, name: str) -> str:
        """Return the id of an experiment; makes it where there is none."""
        import kfp_server_api

        try:
            return str(client.create_experiment(name, namespace=self._namespace).experiment_id)
        except kfp_server_api.ApiException as error:
            if error.status != 409:
                raise
            # Another submit has made it since it was looked for.
            return str(client.get_experiment(experiment_name=name, namespace=self._namespace).experiment_id)

    def _find(self, client: Any, experiment_id: str, name: str) -> str | None:
        condition = {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}
        runs = client.list_runs(
            experiment_id=experiment_id, namespace=self._namespace, filter=json.dumps(condition)
        ).runs
        return str(runs[0].run_id) if runs else None

    def status(self, engine_run: str) -> RunState:
        """Return how the run stands.

        Raises:
            NotFoundError: The backend has no such run.
            ServiceError: It does not answer, or refuses the token.
        """
        return _state(self._answered(lambda client: client.get_run(engine_run), "get runs"))

    def why(self, engine_run: str) -> str:
        """Return the error of a task of the run, or, where none has one, the run's.

        Raises:
            NotFoundError: The backend has no such run.
            ServiceError: It does not answer, or refuses the token.
        """
        run = self._answered(lambda client: client.get_run(engine_run), "get runs")
        reasons = (f"{task.display_name}: {error}" for task in _pods(run).values() if (error := _error(task)))
        return " ".join(next(reasons, _error(run)).split())

    def steps(self, engine_run: str) -> list[StepRecord]:
        """Return what the backend knows of the steps of a run, in the order in which they began.

        Raises:
            NotFoundError: The backend has no such run.
            ServiceError: It does not answer, or refuses the token.
        """
        run = self._answered(lambda client: client.get_run(engine_run), "get runs")
        tasks = sorted(_pods(run).values(), key=lambda task: str(task.start_time or "9"))
        return [
            StepRecord.model_validate(
                {
                    "name": task.display_name,
                    "state": _state(task),
                    "seconds": (task.end_time - task.start_time).total_seconds()
                    if task.start_time and task.end_time
                    else 0.0,
                    "error": _error(task),
                }
            )
            for task in tasks
        ]

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Yield what the pods of the run's steps have printed; with `follow`, each step's when it has ended.

        Raises:
            NotFoundError: The backend has no such run, or no log of it; says the command that shows it.
            ServiceError: It does not answer, or refuses the token.
        """
        finished_pods: set[str] = set()
        while True:
            run = self._answered(lambda client: client.get_run(engine_run), "get runs")
            going = _state(run) in {"pending", "running"}
            for pod, task in _pods(run).items():
                if pod in finished_pods or step not in {None, task.display_name}:
                    continue
                if follow and going and _state(task) in {"pending", "running"}:
                    continue
                text = self._pod_log(engine_run, pod)
                if text is not None:
                    finished_pods.add(pod)
                    yield from [f"--- {task.display_name}"] if step is None else []
                    yield from text.splitlines()
            if not (follow and going):
                break
            time.sleep(POLL_S)
        if not finished_pods:
            which = f"step {step!r} of run" if step else "run"
            raise NotFoundError(
                f"Kubeflow Pipelines has no log of {which} {engine_run}.",
                f"Look with `kubectl logs -n {self._namespace} -l {RUN_LABEL}={engine_run} -c main --prefix`.",
            )

    def _pod_log(self, engine_run: str, pod: str) -> str | None:
        """Return what a pod has printed, or `None` where the backend cannot read it (any more)."""
        import kfp_server_api

        def ask(client: Any) -> Any:
            return client._run_api.api_client.call_api(
                _LOG_PATH,
                "GET",
                {"run_id": engine_run, "node_id": pod},
                header_params={"Accept": "text/plain"},
                auth_settings=["Bearer"],
                response_type="str",
                _return_http_data_only=True,
                _preload_content=False,
            )

        def read(client: Any) -> str | None:
            try:
                return str(ask(client).data.decode(errors="replace"))
            except kfp_server_api.ApiException as error:
                if error.status in {401, 403}:
                    raise
                return None

        return self._answered(read, "read the log of runs")

    def stop(self, engine_run: str) -> None:
        """End the run.

        Raises:
            NotFoundError: The backend has no such run.
            ServiceError: It does not answer, or refuses the token.
        """
        self._answered(lambda client: client.terminate_run(engine_run), "terminate runs")

    def retry(self, engine_run: str) -> str:
        """Let the backend run again what failed, with the code that it has.

        Raises:
            NotFoundError: The backend has no such run.
            UsageError: It has not failed.
            ServiceError: It does not answer, or refuses the token.
        """
        self._answered(lambda client: client._run_api.run_service_retry_run(engine_run), "retry runs")
        return engine_run

    def _configured(self, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the pipeline and its platform configuration with what the profile adds."""
        cluster = self._settings.cluster
        pipeline, platforms = ir.checked(ir.read(job.ir)), copy.deepcopy(job.platforms)
        queue_labels = {QUEUE_LABEL: cluster.queue, PRIORITY_LABEL: cluster.priority_class}
        labels = {name: value for name, value in queue_labels.items() if value}
        tasks = [task for _, task in pipeline.tasks()]
        # Tasks of one component share its executor: where one of them takes no stored result, none does.
        components = {pipeline.component(task).executor_label: pipeline.component(task) for task in tasks}
        uncached = {pipeline.component(task).executor_label for task in tasks if not task.caching_options.enable_cache}
        for name, executor in pipeline.executors.items():
            if not executor.HasField("container"):
                continue
            executor.container.image = cluster.image_of(executor.container.image)
            ours = executor.container.image == cluster.image and name in components
            if ours:
                self._prepare(job, components[name], executor, job.use_cache and name not in uncached)
            secret = cluster.environment_secret if ours else None
            # Each run of a schedule makes its own record, which names the backend's run: its pods have that as a label.
            fields = [{"name": KFP_RUN, "fieldPath": f"metadata.labels['{RUN_LABEL}']"}] if ours and job.cron else []
            if labels or secret or fields:
                kubernetes = platforms.setdefault("platforms", {}).setdefault("kubernetes", {})
                config = kubernetes.setdefault("deploymentSpec", {}).setdefault("executors", {}).setdefault(name, {})
                _configure(config, labels, secret, fields)
        if not job.use_cache:
            # Nor is the backend's own cached result taken.
            for task in tasks:
                ir.forbid_cache(task)
        return pipeline.as_json(), platforms

    def _prepare(self, job: Job, component: ir.Message, executor: ir.Message, cache: bool) -> None:
        """Give a step of the platform image its settings, and put the content key in front of its command."""
        own, variables = ir.command_of(executor), ir.environment_of(executor)
        parameters, artifacts = (ir.outputs(component, kind) for kind in ir.KINDS)
        task = {
            "command": own,
            "environment": variables,
            "cache": cache,
            "outputs": {
                "parameters": {name: ir.type_of(output) for name, output in parameters.items()},
                "artifacts": {name: ir.as_json(output.artifact_type) for name, output in artifacts.items()},
            },
        }
        container = executor.container
        if "--executor_input" in own:
            encoded = base64.b64encode(json.dumps(task, sort_keys=True).encode()).decode()
            container.command[:] = ["python3", "-m", "shopfloor.engines.kfp.step", encoded]
            container.args[:] = own
        values = elsewhere(job.environment)
        values["SHOPFLOOR_STATE_DIR"] = "/tmp/shopfloor"  # noqa: S108  of the step's own container
        values["SHOPFLOOR_STEP"] = component.executor_label.removeprefix("exec-")
        if job.run_id:
            values["SHOPFLOOR_RUN_ID"] = job.run_id
        # The kubelet halves `$$` and expands `$(NAME)` in a variable's value.
        ours = {name: value.replace("$", "$$") for name, value in values.items()}
        del container.env[:]
        for name, value in sorted({**ours, **variables}.items()):
            container.env.add(name=name, value=value)

    def _answered(self, ask: Callable[[Any], _Answer], right: str) -> _Answer:
        """Ask KFP's client, and say in one line what went wrong."""
        import kfp_server_api
        import urllib3

        token = self._settings.cluster.token(TOKEN_VARIABLE)
        try:
            # The client prints links on stdout, which belongs to the command's result, and warns of its own age.
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ask(self._client(token))
        except kfp_server_api.ApiException as error:
            raise self._refused(error, token, right) from error
        except urllib3.exceptions.SSLError as error:
            raise self._api.untrusted() from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # urllib3 counts a refused connection among those that took too long.
            late = isinstance(error, urllib3.exceptions.TimeoutError)
            late = late and not isinstance(error, urllib3.exceptions.NewConnectionError)
            raise ServiceError(*self._api.silent(self._settings.request_timeout_s if late else None)) from error

    def _client(self, token: str) -> Any:
        import requests
        from kfp import Client

        # Where this machine keeps its authorities is known to requests; KFP's client looks nowhere.
        verify = requests.Session().merge_environment_settings(self._api.url, {}, None, None, None)["verify"]
        client = Client(
            host=self._api.url,
            # Each call names the namespace. With none or "kubeflow" here, the client asks for the server's health
            # first, for half a minute where it is refused.
            namespace="-",
            existing_token=token or None,
            ssl_ca_cert=verify if isinstance(verify, str) else None,
        )
        rest = client._run_api.api_client.rest_client
        ask = rest.request
        limit_s = self._settings.request_timeout_s

        def ask_in_time(*arguments: Any, **keywords: Any) -> Any:
            # As a pair: the client ignores one number that is not an int, and waits without an end.
            keywords["_request_timeout"] = (limit_s, limit_s)
            return ask(*arguments, **keywords)

        rest.request = ask_in_time
        # It tries again by itself what may have been done already.
        rest.pool_manager.connection_pool_kw["retries"] = False
        return client

    def _refused(self, error: Any, token: str, right: str) -> ShopfloorError:
        try:
            body = json.loads(error.body or "{}")
        except (ValueError, TypeError):
            body = None
        return self._api.refused(
            int(error.status or 0), body, token, right, "Another command was first; see `shopfloor runs list`."
        )


def _lost() -> tuple[type[Exception], ...]:
    """Return the errors after which nobody knows whether the backend did what it was asked."""
    import urllib3

    return (urllib3.exceptions.HTTPError, OSError)


def _state(run: Any) -> RunState:
    return _STATES.get(str(run.state), "running")


def _error(thing: Any) -> str:
    """Return the message of a run's or a task's error."""
    return str(getattr(thing.error, "message", "") or "")


def _pods(run: Any) -> dict[str, Any]:
    """Return the task of each pod that runs a component: the backend lists them as the children of the task's node."""
    tasks = (run.run_details.task_details if run.run_details else None) or []
    return {
        child.pod_name: task for task in tasks for child in task.child_tasks or [] if _POD in (child.pod_name or "")
    }


def _configure(
    config: dict[str, Any], labels: dict[str, str], secret: str | None, fields: list[dict[str, str]]
) -> None:
    """Add labels, the secret and variables from a pod's fields to an executor's configuration; what is there stays."""
    if fields:
        config.setdefault("fieldPathAsEnv", []).extend(fields)
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
