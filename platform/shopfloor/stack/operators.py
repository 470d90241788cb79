"""Looks whether a cluster has the operators that runs need, in the versions that the project installs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shopfloor.errors import ServiceError, ShopfloorError, first_line
from shopfloor.settings import Settings
from shopfloor.stack.finding import Finding
from shopfloor.training.admission import OPERATORS, Operator, apis, missing, refusal

_RELEASE = re.compile(r"(?:download/|ref=)v(\d+\.\d+\.\d+)")
_TAG = re.compile(r":v?(\d+\.\d+\.\d+)")


def examine(settings: Settings, timeout_s: float) -> Iterator[Finding]:
    """Yield a finding for each operator; for none where the profile's runs are not on Kubernetes.

    Args:
        settings: The profile's.
        timeout_s: How long the Kubernetes API may take for an answer.
    """
    if settings.ray_address != "rayjob" and not settings.cluster.queue:
        return
    try:
        custom, _ = apis(retries=0)
    except ShopfloorError as error:
        yield Finding(subject="kubernetes", verdict="fail", message=error.message, remedy=error.remedy)
        return
    for operator in OPERATORS:
        try:
            yield _finding(settings, operator, _Api(custom.api_client, timeout_s))
        except ServiceError as error:
            subject = operator.title if error.message.startswith("The cluster has no") else "kubernetes"
            yield Finding(subject=subject, verdict="fail", message=error.message, remedy=error.remedy)
            if subject == "kubernetes":  # it is the same for all
                return


def pinned(root: Path, operator: Operator) -> str:
    """Return the version that the project's manifests install; empty where they are not there."""
    file = root / "manifests" / "operators" / operator.folder / "kustomization.yaml"
    found = _RELEASE.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found[1] if found else ""


class _Api:
    """Asks the Kubernetes API for documents by their path."""

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s

    def get(self, path: str) -> Any:
        """Return the document at a path, `None` where there is none.

        Raises:
            PermissionError: The login may not read it.
            ServiceError: The API does not answer, or takes no such login.
        """
        from kubernetes.client import ApiException

        ask: Callable[..., Any] = self._client.call_api
        try:
            return ask(
                path,
                "GET",
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=self._timeout_s,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            if error.status == 403:
                raise PermissionError(refusal(error.body)) from error
            if error.status == 401:
                raise ServiceError(
                    "The Kubernetes API does not take the login of the kubeconfig, or no longer.",
                    "Renew it: log in to the cluster again.",
                ) from error
            raise ServiceError(f"The Kubernetes API failed with status {error.status}.", "Try again.") from error
        except Exception as error:
            raise ServiceError(
                f"The Kubernetes API does not answer: {first_line(error, 200)}.", "Look at KUBECONFIG, then try again."
            ) from error


def _finding(settings: Settings, operator: Operator, api: _Api) -> Finding:
    if api.get(f"/apis/{operator.group}/{operator.version}") is None:
        raise missing(operator.group)
    wanted = pinned(settings.project_root, operator)
    try:
        place = f"/apis/apps/v1/namespaces/{operator.namespace}/deployments/{operator.deployment}"
        deployment = api.get(place)
    except PermissionError:
        return Finding(
            subject=operator.title,
            verdict="ok",
            message=f"the cluster knows {operator.group}/{operator.version}; its version is not for this login to read",
        )
    if deployment is None:
        message = f"the cluster knows {operator.group}/{operator.version}, and there is no {operator.deployment}"
        return _amiss(operator, f"{message} in the namespace {operator.namespace}")
    images = [one["image"] for one in deployment["spec"]["template"]["spec"]["containers"]]
    version = next((found[1] for image in images if (found := _TAG.search(image))), "")
    if not (deployment.get("status") or {}).get("availableReplicas"):
        say = f"kubectl -n {operator.namespace} describe pods"
        return Finding(
            subject=operator.title,
            verdict="fail",
            message=f"no pod of {operator.deployment} in the namespace {operator.namespace} is up",
            remedy=f"See why: {say}",
        )
    if wanted and version and version != wanted:
        return _amiss(operator, f"{version} runs, and the project's manifests name {wanted}")
    return Finding(subject=operator.title, verdict="ok", message=f"{version or 'some version'} runs")


def _amiss(operator: Operator, message: str) -> Finding:
    return Finding(subject=operator.title, verdict="warn", message=message, remedy=f"`{operator.install}`")
