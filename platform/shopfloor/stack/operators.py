"""Looks whether a cluster has the operators that runs need, in the versions that the project installs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shopfloor.errors import ServiceError, ShopfloorError
from shopfloor.settings import Settings
from shopfloor.stack.finding import Finding
from shopfloor.training.admission import OPERATORS, Operator, apis, document, missing, refusal, unanswered
from shopfloor.training.tuning import OWN_CLUSTER

NOT_FOUND, FORBIDDEN = 404, 403
_RELEASE = re.compile(r"(?:download/|ref=)v(\d+\.\d+\.\d+)")
_TAG = re.compile(r":v?(\d+\.\d+\.\d+)")


def examine(settings: Settings, timeout_s: float) -> Iterator[Finding]:
    """Yield a finding for each operator; for none where the profile's runs are not on Kubernetes.

    Args:
        settings: The profile's.
        timeout_s: How long the Kubernetes API may take for an answer.
    """
    if settings.ray_address != OWN_CLUSTER and not settings.cluster.queue:
        return
    try:
        custom, _ = apis(retries=0)

        def get(path: str) -> Any:
            return document(custom, path, timeout_s)

        for operator in OPERATORS:
            yield _finding(settings, operator, get)
    except ShopfloorError as error:  # it would be the same for all
        yield Finding(subject="kubernetes", verdict="fail", message=error.message, remedy=error.remedy)


def pinned(root: Path, operator: Operator) -> str:
    """Return the version that the project's manifests install; empty where they are not there."""
    file = root / "manifests" / "operators" / operator.folder / "kustomization.yaml"
    found = _RELEASE.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found[1] if found else ""


def _finding(settings: Settings, operator: Operator, get: Callable[[str], Any]) -> Finding:
    """Return what is to be said of one operator.

    Raises:
        ServiceError: The API does not answer, or lets nobody ask for what it has.
    """
    api = f"{operator.group}/{operator.version}"
    try:
        get(f"/apis/{api}")
    except Exception as error:
        if _status(error) == NOT_FOUND:
            none = missing(operator.group)
            return Finding(subject=operator.title, verdict="fail", message=none.message, remedy=none.remedy)
        if _status(error) == FORBIDDEN:  # every login may ask that
            raise ServiceError(
                f"The Kubernetes API lets nobody in without a login: {refusal(getattr(error, 'body', ''))}.",
                "Log in to the cluster; the kubeconfig names no user.",
            ) from error
        raise unanswered(error) from error
    try:
        place = f"/apis/apps/v1/namespaces/{operator.namespace}/deployments/{operator.deployment}"
        deployment = get(place)
    except Exception as error:
        if _status(error) == NOT_FOUND:
            return Finding(
                subject=operator.title,
                verdict="warn",
                message=f"the cluster knows {api}; no {operator.deployment} is in the namespace {operator.namespace}",
                remedy=f"If it runs in no other one: `{operator.install}`",
            )
        if _status(error) == FORBIDDEN:
            message = f"the cluster knows {api}; its version is not for this login to read"
            return Finding(subject=operator.title, verdict="ok", message=message)
        raise unanswered(error) from error
    if not (deployment.get("status") or {}).get("availableReplicas"):
        return Finding(
            subject=operator.title,
            verdict="fail",
            message=f"no pod of {operator.deployment} in the namespace {operator.namespace} is up",
            remedy=f"See why: kubectl -n {operator.namespace} describe pods",
        )
    images = [one["image"] for one in deployment["spec"]["template"]["spec"]["containers"]]
    version = next((found[1] for image in images if (found := _TAG.search(image))), "")
    wanted = pinned(settings.project_root, operator)
    if wanted and version and version != wanted:
        return Finding(
            subject=operator.title,
            verdict="warn",
            message=f"{version} runs, and the project's manifests name {wanted}",
            remedy=f"`{operator.install}`",
        )
    return Finding(subject=operator.title, verdict="ok", message=f"{version or 'some version'} runs")


def _status(error: Exception) -> int | None:
    """Return the status with which Kubernetes' API refused; `None` where it did not answer."""
    return getattr(error, "status", None)
