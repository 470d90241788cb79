"""What we change in a component, or know of its inside: the one register of it.

Each entry says against which version it was checked, where our side of it stands, and why it is there. The definitions
that it relies on are remembered by a hash of their text, so that a new version of the component is known to have left
them alone, or not: `shopfloor doctor` says so, and a test fails. Read such a definition again, mend our side where
that is due, then write down the version and the hashes that `moved` gives.

Imports nothing of ours, and no component: it reads their files.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Patch:
    """One thing that we change in a component, or that works only as long as its inside stays what it is."""

    name: str
    component: str
    """Distribution of the component."""
    version: str
    """Version that it was checked against."""
    where: str
    """Our side of it, below `platform/shopfloor`."""
    reason: str
    relies_on: dict[str, str]
    """Hashes of the component's definitions, each by its file and name as in `ray/scripts/scripts.py:start`.

    A file alone stands for what it does when it is imported.
    """


def installed(component: str) -> str | None:
    """Return the version of a component, `None` where it is not installed."""
    try:
        return metadata.version(component)
    except metadata.PackageNotFoundError:
        return None


def fingerprint(component: str, place: str) -> str | None:
    """Return the hash of a definition's text as it is installed, `None` where there is no such definition.

    Args:
        component: Its distribution.
        place: File and name, as in `Patch.relies_on`; a file alone is all of it.
    """
    file, _, name = place.partition(":")
    try:
        text = str(metadata.distribution(component).locate_file(file))
        with open(text, encoding="utf-8") as handle:
            source = handle.read()
    except (metadata.PackageNotFoundError, OSError):
        return None
    node: ast.AST | None = ast.parse(source)
    if not name:
        return hashlib.sha256(source.encode()).hexdigest()[:12]
    for part in name.split("."):
        inside = getattr(node, "body", [])
        node = next((child for child in inside if part in _names(child)), None)
    if node is None:
        return None
    return hashlib.sha256((ast.get_source_segment(source, node) or "").encode()).hexdigest()[:12]


def moved(patch: Patch) -> dict[str, str | None]:
    """Return the definitions that are not what they were when the patch was checked, each with its hash now."""
    now = {place: fingerprint(patch.component, place) for place in patch.relies_on}
    return {place: present for place, present in now.items() if present != patch.relies_on[place]}


def _names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return {node.name} if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else set()


PATCHES = (
    Patch(
        name="haproxy-listens-here",
        component="ray",
        version="2.60.0",
        where="stack/ray_head.py",
        reason=(
            "Ray Serve renders HAProxy's metrics and statistics for every interface, a connection timeout in"
            " whole seconds, and no buffering of requests: a script in front of HAProxy rewrites these lines"
            " of its configuration."
        ),
        relies_on={
            "ray/serve/_private/haproxy_templates.py:HAPROXY_CONFIG_TEMPLATE": "99c90f5cbbd4",
            "ray/serve/_private/haproxy.py:HAProxyApi._generate_config_file_internal": "deaa79e10903",
            "ray/serve/_private/haproxy.py:HAProxyApi._start_and_wait_for_haproxy": "bd636264d95d",
        },
    ),
    Patch(
        name="haproxy-places",
        component="ray",
        version="2.60.0",
        where="stack/ray_head.py",
        reason=(
            "Two Serves on one machine share HAProxy's ports, sockets and files unless variables that no "
            "documentation names say otherwise."
        ),
        relies_on={
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_SOCKET_PATH": "0ce563de37e6",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_METRICS_PORT": "5a6e6dfe6748",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_STATS_PORT": "d1a28d2e2b49",
            "ray/serve/_private/constants.py:RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "04abfc02176c",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "edb63f674ca2",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_BINARY_PATH": "453ebcef03db",
            "ray/serve/_private/constants.py:RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": "5f8f58f68f55",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "3cea89852b69",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "d49d93f38e40",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "0923bc989b31",
            "ray/dashboard/consts.py:DASHBOARD_METRIC_PORT": "4bfbdbd97f15",
            "ray/serve/_private/constants.py:RAY_SERVE_HAPROXY_RETRY_ON": "0ad4827cc12f",
        },
    ),
    Patch(
        name="serve-on-one-machine",
        component="ray",
        version="2.60.0",
        where="stack/ray_head.py",
        reason=(
            "Variables without documentation: HAProxy instead of Ray's own proxy, RAY_SERVE_THROUGHPUT_OPTIMIZED for"
            " what Serve does in each request, 2 instead of 30 s before a replaced replica ends, 60 instead of 5 s"
            " until a proxy must be ready (RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S), no 30 s for draining to another"
            " node, and logs that end at RAY_ROTATION_MAX_BYTES, of which RAY_ROTATION_BACKUP_COUNT stay."
        ),
        relies_on={
            "ray/serve/_private/constants.py:RAY_SERVE_ENABLE_HA_PROXY": "2cf3bc97f5a3",
            "ray/serve/_private/constants.py:RAY_SERVE_THROUGHPUT_OPTIMIZED": "2ed7f2c42dfb",
            "ray/serve/_private/constants.py:RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "9553c8ad0675",
            "ray/serve/_private/constants.py:PROXY_READY_CHECK_TIMEOUT_S": "a0b4b8f8b4d5",
            "ray/_private/ray_constants.py:RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "ca7a6b259420",
            "ray/_private/node.py:Node.__init__": "cdbca341000c",
        },
    ),
    Patch(
        name="no-gpu-unasked",
        component="ray",
        version="2.60.0",
        where="stack/ray_head.py",
        reason=(
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 hides the GPUs from replicas and trials that ask for none, as Ray did"
            " by itself before. Without it each held 518 MiB of an H200 with XGBoost for CUDA."
        ),
        relies_on={
            "ray/_private/utils.py:set_visible_accelerator_ids": "95b5ea24a145",
        },
    ),
    Patch(
        name="quiet-search",
        component="ray",
        version="2.60.0",
        where="training/cluster.py",
        reason=(
            "RAY_AIR_NEW_OUTPUT=0 and TUNE_DISABLE_AUTO_CALLBACK_LOGGERS=1 leave out Tune's tables and each trial's"
            " files that nobody reads; RAY_TRAIN_V2_ENABLED=1 is what Train's trainers are written for."
        ),
        relies_on={
            "ray/tune/experimental/output.py:get_air_verbosity": "c8fe669d385a",
            "ray/tune/utils/callback.py:_create_default_callbacks": "58b752f6d445",
            "ray/train/v2/_internal/constants.py:V2_ENABLED_ENV_VAR": "f36c1eaa88a3",
        },
    ),
    Patch(
        name="time-to-stop-a-job",
        component="ray",
        version="2.60.0",
        where="engines/ray.py",
        reason=(
            "A job that is stopped gets 3 s before it is killed, too few for steps to end and for the run's record to"
            " be closed: RAY_JOB_STOP_WAIT_TIME_S gives it more."
        ),
        relies_on={
            "ray/dashboard/modules/job/job_supervisor.py:JobSupervisor.run": "34371da6be33",
        },
    ),
    Patch(
        name="no-ray-client-server",
        component="ray",
        version="2.60.0",
        where="stack/ray_head.py",
        reason=(
            "`ray start` has no option that leaves out the Ray client server, which would listen beside the "
            "jobs: the start hook does."
        ),
        relies_on={
            "ray/_private/ray_constants.py:RAY_START_HOOK": "074429ec837b",
            "ray/_private/parameter.py:RayParams.update_if_absent": "fe82b84a88bd",
        },
    ),
    Patch(
        name="node-beside-other-work",
        component="ray",
        version="2.60.0",
        where="stack/ray_head.py",
        reason=(
            "A raylet ends when its agent has not written within 15 s where it listens, which no setting changes and"
            " which a machine with other work needs: the start hook writes it, as the port is named. Seen as `The"
            " current node timed out during startup`."
        ),
        relies_on={
            "ray/_private/services.py:start_raylet": "5a811f69be1a",
            "ray/_private/node.py:Node.start_raylet": "292c1d13a967",
            "ray/dashboard/agent.py:DashboardAgent.run": "603e376f42f4",
        },
    ),
    Patch(
        name="loopback-cluster",
        component="ray",
        version="2.60.0",
        where="stack/ray_head.py, settings.py",
        reason=(
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 keeps every process of a cluster on 127.0.0.1, on Linux as "
            "well; no option does."
        ),
        relies_on={
            "ray/_private/ray_constants.py:ENABLE_RAY_CLUSTERS_ENV_VAR": "2fd0ba410a33",
            "ray/_private/ray_constants.py:ENABLE_RAY_CLUSTER": "8403484b4033",
            "ray/_private/services.py:get_node_ip_address": "4f551d998885",
        },
    ),
    Patch(
        name="token-in-requests",
        component="ray",
        version="2.60.0",
        where="settings.py",
        reason=(
            "Our requests to the dashboard carry Ray's token without importing Ray, in the header that its "
            "own clients send."
        ),
        relies_on={
            "ray/_private/authentication/http_token_authentication.py:get_token_auth_middleware": "dd5333f5ce45",
            "ray/_private/authentication/authentication_constants.py:AUTHORIZATION_HEADER_NAME": "e743ca0bc1ac",
        },
    ),
    Patch(
        name="address-before-variables",
        component="ray",
        version="2.60.0",
        where="engines/ray.py",
        reason=(
            "The client of Ray's jobs prefers the address in two variables to the one that it is given: they"
            " are hidden from it. RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES is emptied, because"
            " what the copy lacks is said by us, and once."
        ),
        relies_on={
            "ray/dashboard/utils.py:get_address_for_submission_client": "16c318090fd3",
            "ray/_private/ray_constants.py:get_runtime_env_default_excludes": "eccb2d951d68",
        },
    ),
    Patch(
        name="headers-that-serve-decodes",
        component="ray",
        version="2.60.0",
        where="serving/replica/exchange.py",
        reason=(
            "Serve decodes some headers before the application is asked and answers 500 where they are no "
            "text: they are dropped."
        ),
        relies_on={
            "ray/serve/_private/constants.py:SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER": "8cf4ac725f52",
            "ray/serve/_private/constants.py:SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER": "0b048f11fe99",
            "ray/serve/_private/constants.py:SERVE_MULTIPLEXED_MODEL_ID": "e4556e312404",
        },
    ),
    Patch(
        name="answer-in-one-write",
        component="uvicorn",
        version="0.54.0",
        where="serving/replica/exchange.py",
        reason=(
            "uvicorn writes head and body apart; between both an answer has begun, so that HAProxy can ask "
            "no other replica, and the second write costs a system call. Neither uvicorn nor Serve lets one "
            "choose the class."
        ),
        relies_on={
            "uvicorn/protocols/http/httptools_impl.py:RequestResponseCycle": "4523b6e76884",
            "uvicorn/protocols/http/httptools_impl.py:HttpToolsProtocol.on_headers_complete": "c713423e2fb6",
        },
    ),
    Patch(
        name="without-feasts-header-plugin",
        component="mlflow",
        version="3.17.2",
        where="runs/mlflow.py",
        reason=(
            "MLflow asks every plugin for request headers, and Feast's costs each process five seconds and "
            "100 MiB: it is left out."
        ),
        relies_on={
            "mlflow/utils/plugins.py:get_entry_points": "7132c3c7b267",
            "mlflow/tracking/request_header/registry.py:RequestHeaderProviderRegistry": "a7b4eb31b84c",
        },
    ),
    Patch(
        name="server-in-one-process",
        component="mlflow",
        version="3.17.2",
        where="stack/mlflow_server.py",
        reason=(
            "`mlflow server` imports MLflow in two processes and keeps both: this one starts the same "
            "application in half the time."
        ),
        relies_on={
            "mlflow/server/__init__.py:_run_server": "0b9c605f28c1",
            "mlflow/server/handlers.py:initialize_backend_stores": "12b1d4f4e5b3",
        },
    ),
    Patch(
        name="answers-as-json",
        component="mlflow",
        version="3.17.2",
        where="serving/model/loading.py",
        reason="Predictions become JSON values by the private function that MLflow's own scoring server uses.",
        relies_on={
            "mlflow/utils/proto_json_utils.py:_get_jsonable_obj": "0d10c162190b",
        },
    ),
    Patch(
        name="xgboost-without-a-matrix",
        component="xgboost-cpu",
        version="3.2.0",
        where="serving/model/native.py",
        reason=(
            "Half of what XGBoost's Python API costs for one row is spent describing its arrays in JSON: the"
            " C function behind it is called with arrays that are described once."
        ),
        relies_on={
            "xgboost/core.py:_LIB": "a63caeec6ba4",
            "xgboost/core.py:Booster.inplace_predict": "1a89da80fafb",
        },
    ),
    Patch(
        name="kfp-without-its-client",
        component="kfp",
        version="2.17.0",
        where="pipeline/sdk.py",
        reason=(
            "`import kfp` brings in its client and every model of Kubernetes with it, 0.5 of the 0.7 s: a stand-in"
            " is in its place until somebody asks for it."
        ),
        relies_on={
            "kfp/__init__.py": "6f373d77dc69",
        },
    ),
    Patch(
        name="kfp-loops-mended",
        component="kfp",
        version="2.17.0",
        where="pipeline/sdk.py",
        reason=(
            "KFP's compiler gives a group the item of a loop over a list from outside instead of the list, does not"
            " hand an outer item on to an inner loop, and asks for a field that nobody gives."
        ),
        relies_on={
            "kfp/compiler/compiler_utils.py:get_inputs_for_all_groups": "24a621c17220",
            "kfp/compiler/pipeline_spec_builder.py:_update_task_spec_for_loop_group": "91dc58b01790",
            "kfp/compiler/pipeline_spec_builder.py:build_task_spec_for_group": "422f6688d570",
        },
    ),
    Patch(
        name="kfp-client-in-time",
        component="kfp",
        version="2.17.0",
        where="engines/kfp/engine.py",
        reason=(
            "KFP's client waits without an end, tries again what may have been done, and reads no log: its "
            "private API client is asked."
        ),
        relies_on={
            "kfp/client/client.py:Client.__init__": "3eda2bf09b28",
        },
    ),
    Patch(
        name="kfp-local-inside",
        component="kfp",
        version="2.17.0",
        where="engines/local.py",
        reason=(
            "The local engine prepares a task's input and reads its outputs by the functions that kfp.local "
            "itself uses."
        ),
        relies_on={
            "kfp/local/executor_input_utils.py:construct_executor_input": "fdffb7ab2873",
            "kfp/local/executor_output_utils.py:get_outputs_for_task": "0dfa5d14afe2",
        },
    ),
    Patch(
        name="xgboost-without-sklearn",
        component="xgboost-cpu",
        version="3.2.0",
        where="serving/batch.py",
        reason=(
            "XGBoost imports scikit-learn for its estimators, three quarters of the time of the import: it is hidden"
            " from a worker that has a booster."
        ),
        relies_on={
            "xgboost/compat.py": "e822e74b6f4b",
        },
    ),
    Patch(
        name="feast-views-without-a-key",
        component="feast",
        version="0.67.0",
        where="data/features.py",
        reason=(
            "Feast gives a view without an entity a join key of its own, which is no column of the rows; its constant"
            " says which, and no documentation."
        ),
        relies_on={
            "feast/feature_view.py:DUMMY_ENTITY_ID": "32830bbc5e08",
        },
    ),
    Patch(
        name="feast-times-of-an-answer",
        component="feast",
        version="0.67.0",
        where="serving/online/store.py",
        reason=(
            "Feast hands out values that have outlived their view's ttl, and of their times `to_dict` keeps whole"
            " seconds: they are read from the message behind the answer."
        ),
        relies_on={
            "feast/online_response.py:OnlineResponse.__init__": "8e6d3830b3d5",
            "feast/online_response.py:OnlineResponse.to_dict": "3a6bebbd9501",
        },
    ),
    Patch(
        name="dvc-index",
        component="dvc",
        version="3.67.1",
        where="data/repository.py",
        reason="What DVC tracks is asked of its index, which has no documented interface in Python.",
        relies_on={
            "dvc/repo/index.py:Index.data": "d25821639f7c",
            "dvc/repo/index.py:Index.outs": "5757c6bbb8ad",
            "dvc/output.py:Output.index_key": "972524f5278f",
        },
    ),
    Patch(
        name="s3fs-refusals",
        component="s3fs",
        version="2026.9.0",
        where="storage.py",
        reason=(
            "fsspec takes every error for a file that is not there, and s3fs has no time limit for a call with its"
            " retries: the one method through which its requests go says what is wrong, in time."
        ),
        relies_on={
            "s3fs/core.py:S3FileSystem._call_s3": "e2180342776f",
            "s3fs/core.py:S3FileSystem._list_pages": "ca3d6f1db11f",
            "fsspec/spec.py:AbstractFileSystem.isfile": "2507d38b3c76",
        },
    ),
)
"""All of them."""
