"""Argo's server by its REST API: the few calls that a run needs, and its answers in one line each.

The paths and bodies are those of Argo's own OpenAPI document; the official client's models check them in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import quote

from shopfloor.errors import ConflictError, NotFoundError, ServiceError, UsageError
from shopfloor.settings import Settings

TOKEN_VARIABLE = "ARGO_TOKEN"  # noqa: S105  the variable's name
RUN_LABEL = "shopfloor/run-id"
Json = dict[str, Any]


class ArgoClient:
    """Talks to one Argo server about the workflows of one namespace."""

    def __init__(self, settings: Settings) -> None:
        """Use the server and the namespace of `settings.cluster`; nothing is asked yet."""
        self._settings = settings
        self._url = settings.cluster.argo_url.rstrip("/")
        self._namespace = settings.cluster.namespace

    def create(self, workflow: Json) -> Json:
        """Create a workflow and return it as the server has it; a name that is taken by the same run is that run.

        An answer can be lost on the way: the workflow has a name of its own, under which it is looked for then.

        Args:
            workflow: The manifest, with `metadata.name`.

        Raises:
            ConflictError: Another run has that name.
            UsageError: The server refuses the manifest.
            ServiceError: The server does not answer, or refuses the token.
        """
        name = workflow["metadata"]["name"]
        body = {"namespace": self._namespace, "workflow": workflow}
        try:
            return self._ask("POST", f"workflows/{self._namespace}", "create workflows", body)
        except (ConflictError, _LostError):
            there = self._find(name)
            run = workflow["metadata"].get("labels", {}).get(RUN_LABEL)
            if there is not None and run and there["metadata"].get("labels", {}).get(RUN_LABEL) == run:
                return there
            raise

    def lint(self, workflow: Json) -> None:
        """Let the server examine a manifest without creating anything.

        Raises:
            UsageError: It finds a fault.
            ServiceError: It does not answer, or refuses the token.
        """
        body = {"namespace": self._namespace, "workflow": workflow}
        self._ask("POST", f"workflows/{self._namespace}/lint", "create workflows", body)

    def create_cron(self, cron_workflow: Json) -> Json:
        """Create a CronWorkflow.

        Raises:
            ConflictError: There is one of that name.
            UsageError: The server refuses the manifest.
            ServiceError: The server does not answer, or refuses the token.
        """
        body = {"namespace": self._namespace, "cronWorkflow": cron_workflow}
        return self._ask("POST", f"cron-workflows/{self._namespace}", "create cronworkflows", body)

    def get(self, name: str) -> Json:
        """Return a workflow with its status.

        Raises:
            NotFoundError: There is none of that name.
            ServiceError: The server does not answer, or refuses the token.
        """
        return self._ask("GET", self._path(name), "get workflows")

    def stop(self, name: str) -> None:
        """Let the workflow end: its exit handlers still run.

        Raises:
            NotFoundError: There is none of that name.
            ServiceError: The server does not answer, or refuses the token.
        """
        self._ask("PUT", f"{self._path(name)}/stop", "update workflows", self._named(name))

    def retry(self, name: str) -> Json:
        """Run again what failed of a workflow.

        Raises:
            NotFoundError: There is none of that name.
            UsageError: It has not failed.
            ServiceError: The server does not answer, or refuses the token.
        """
        body = {**self._named(name), "restartSuccessful": False}
        return self._ask("PUT", f"{self._path(name)}/retry", "update workflows", body)

    def logs(self, name: str, follow: bool) -> Iterator[tuple[str, str]]:
        """Yield the pod and the text of each line of a workflow's steps.

        Raises:
            NotFoundError: There is none of that name.
            ServiceError: The server does not answer, refuses the token, or stopped in the middle.
        """
        import requests

        options = {"logOptions.container": "main", "logOptions.follow": str(follow).lower()}
        answer = self._send("GET", f"{self._path(name)}/log", "get pods/log", params=options, stream=True)
        try:
            for line in answer.iter_lines():
                entry = json.loads(line) if line else {}
                if "error" in entry:
                    raise ServiceError(f"Argo's log of {name} ended: {entry['error'].get('message', entry['error'])}")
                if "result" in entry:
                    yield entry["result"].get("podName", ""), entry["result"].get("content", "")
        except (requests.RequestException, ValueError) as error:
            raise ServiceError(
                f"The Argo server {self._url} stopped answering.", "The run goes on; ask for its log again."
            ) from error
        finally:
            answer.close()

    def _named(self, name: str) -> Json:
        return {"name": name, "namespace": self._namespace}

    def _path(self, name: str) -> str:
        return f"workflows/{self._namespace}/{quote(name, safe='')}"

    def _find(self, name: str) -> Json | None:
        try:
            return self.get(name)
        except NotFoundError:
            return None

    def _ask(self, method: str, path: str, right: str, body: Json | None = None) -> Json:
        answer = self._send(method, path, right, json=body)
        try:
            found = answer.json()
        except ValueError as error:
            raise self._not_argo() from error
        if not isinstance(found, dict):
            raise self._not_argo()
        return found

    def _send(self, method: str, path: str, right: str, **options: Any) -> Any:
        """Return the server's answer, or raise what it means that there is none or a bad one."""
        import requests

        token = self._settings.cluster.token(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = requests.request(
                method,
                f"{self._url}/api/v1/{path}",
                headers=headers,
                timeout=self._settings.request_timeout_s,
                allow_redirects=False,
                **options,
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, ValueError) as error:
            raise UsageError(f"{self._url!r} is no address of an Argo server.", "Mend cluster.argo_url.") from error
        except requests.exceptions.SSLError as error:
            raise ServiceError(
                f"The certificate of the Argo server {self._url} is not trusted.",
                "Give its authority's file in REQUESTS_CA_BUNDLE.",
            ) from error
        except requests.Timeout as error:
            raise _LostError(
                f"The Argo server {self._url} did not answer within {self._settings.request_timeout_s:g} s.",
                "Look whether it is up, then submit again: what was created is found.",
            ) from error
        except requests.RequestException as error:
            raise _LostError(
                f"The Argo server {self._url} does not answer.",
                "Look whether it is up and cluster.argo_url is right, then try again.",
            ) from error
        if answer.status_code >= 300:
            self._refused(answer, right, bool(token))
        return answer

    def _refused(self, answer: Any, right: str, had_token: bool) -> NoReturn:
        """Raise what an answer other than success means, in the words of the server where it gives any."""
        try:
            body = answer.json()
            said = str(body.get("message") or body.get("error") or "") if isinstance(body, dict) else ""
        except ValueError:
            said = ""
        said = self._without_token(" ".join(said.split()))[:400]
        status = answer.status_code
        if status == 401:
            what = "refuses the token: it is wrong or has expired" if had_token else "wants a token"
            raise ServiceError(
                f"The Argo server {self._url} {what}.",
                f"Put a token into ${TOKEN_VARIABLE} or the file cluster.token_file (argo auth token).",
            )
        if status == 403:
            raise ServiceError(
                f"No right to {right} in the namespace {self._namespace}{_quoted(said)}.",
                "Ask the platform team for it, or mend cluster.namespace.",
            )
        if status == 404:
            if not said:
                raise self._not_argo()
            raise NotFoundError(
                f"Argo does not know it: {said}.", "Its record is kept; `shopfloor runs resume` goes on."
            )
        if status == 409:
            raise ConflictError(
                f"Argo refuses: {said or 'the name is taken'}.", "Another submit was first; see runs list."
            )
        if status in {400, 422}:
            raise UsageError(
                f"Argo refuses the workflow: {said or answer.reason}.", "Mend the pipeline or the profile."
            )
        if 300 <= status < 400:
            raise self._not_argo()
        raise ServiceError(
            f"The Argo server {self._url} failed with status {status}{_quoted(said)}.", "See the server's own log."
        )

    def _not_argo(self) -> ServiceError:
        return ServiceError(f"{self._url} does not answer as an Argo server does.", "Mend cluster.argo_url.")

    def _without_token(self, text: str) -> str:
        token = self._settings.cluster.token(TOKEN_VARIABLE)
        return text.replace(token, "***") if token else text


class _LostError(ServiceError):
    """No answer came: what was asked for may have been done or not."""


def _quoted(said: str) -> str:
    return f": {said.rstrip('.')}" if said else ""
