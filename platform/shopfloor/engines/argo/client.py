"""Argo's server by its REST API: the few calls that a run needs, and its answers in one line each.

The paths and bodies are those of Argo's own OpenAPI document; the official client's models check them in the tests.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from shopfloor.engines.refusals import Api
from shopfloor.errors import ConflictError, NotFoundError, ServiceError, ShopfloorError, UsageError
from shopfloor.settings import Settings

TOKEN_VARIABLE = "ARGO_TOKEN"  # noqa: S105  the variable's name
RUN_LABEL = "shopfloor/run-id"
ENDED = {"Succeeded", "Failed", "Error"}
"""Phases in which a workflow changes no more."""
SILENCE_S = 300.0
"""A log that is followed and says nothing for so long is asked for anew: what stands between may have cut it."""
REOPEN_S = 2.0
_AT_RUN = "Another submit was first; see `shopfloor runs list`."
_AT_CHANGE = "Another command changed it at the same moment; try again."
Json = dict[str, Any]


class ArgoClient:
    """Talks to one Argo server about the workflows of one namespace.

    Every call can raise ServiceError (the server does not answer, it refuses the token, or there is no right in the
    namespace) and, with a workflow's name, NotFoundError.
    """

    def __init__(self, settings: Settings) -> None:
        """Use the server and the namespace of `settings.cluster`; nothing is asked yet."""
        self._settings = settings
        self._namespace = settings.cluster.namespace
        url = settings.cluster.argo_url.rstrip("/")
        self._api = Api("Argo server", url, self._namespace, TOKEN_VARIABLE, "cluster.argo_url", "argo auth token")

    def create(self, workflow: Json) -> Json:
        """Create a workflow and return it as the server has it; a name that is taken by the same run is that run.

        An answer can be lost on the way: the workflow has a name of its own, under which it is looked for then.

        Args:
            workflow: The manifest, with `metadata.name`.

        Raises:
            ConflictError: Another run has that name.
            UsageError: The server refuses the manifest.
        """
        name = workflow["metadata"]["name"]
        try:
            return self._ask("POST", f"workflows/{self._namespace}", "create workflows", self._body(workflow=workflow))
        except (ConflictError, _LostError) as error:
            there = self._find(name, error)
            run = workflow["metadata"].get("labels", {}).get(RUN_LABEL)
            if there is not None and run and there["metadata"].get("labels", {}).get(RUN_LABEL) == run:
                return there
            raise

    def lint(self, workflow: Json) -> None:
        """Let the server examine a manifest without creating anything.

        Raises:
            UsageError: It finds a fault.
        """
        self._ask("POST", f"workflows/{self._namespace}/lint", "create workflows", self._body(workflow=workflow))

    def create_cron(self, cron_workflow: Json) -> Json:
        """Let the server examine a CronWorkflow, and create it.

        Raises:
            ConflictError: There is one of that name.
            UsageError: The server refuses the manifest.
        """
        path, body = f"cron-workflows/{self._namespace}", self._body(cronWorkflow=cron_workflow)
        self._ask("POST", f"{path}/lint", "create cronworkflows", body)
        replace = f"To replace it: kubectl delete cronworkflow -n {self._namespace} {cron_workflow['metadata']['name']}"
        return self._ask("POST", path, "create cronworkflows", body, at_name_taken=replace)

    def get(self, name: str) -> Json:
        """Return a workflow with its status."""
        return self._ask("GET", self._path(name), "get workflows")

    def stop(self, name: str) -> None:
        """Let the workflow end: its exit handlers still run."""
        self._ask("PUT", f"{self._path(name)}/stop", "patch workflows", self._body(name=name))

    def terminate(self, name: str) -> None:
        """End the workflow at once: its exit handlers do not run."""
        self._ask("PUT", f"{self._path(name)}/terminate", "patch workflows", self._body(name=name))

    def retry(self, name: str) -> Json:
        """Run again what failed of a workflow.

        Raises:
            UsageError: It has not failed.
        """
        body = self._body(name=name, restartSuccessful=False)
        return self._ask("PUT", f"{self._path(name)}/retry", "update workflows", body)

    def logs(self, name: str, follow: bool) -> Iterator[tuple[str, str]]:
        """Yield the pod and the text of each line of a workflow's steps; with `follow`, until the workflow ends.

        Raises:
            ServiceError: Also where the server stopped in the middle; one that is followed is asked for the rest.
        """
        if not follow:
            yield from self._lines(name, follow=False)
            return
        totals: Counter[str] = Counter()
        first, ended = True, False
        while True:
            cut = False
            counts: Counter[str] = Counter()
            try:
                # A pod's log only grows: so many of its lines have been handed on.
                for pod, line in self._lines(name, follow=not ended):
                    counts[pod] += 1
                    if counts[pod] > totals[pod]:
                        totals[pod] += 1
                        yield pod, line
            except _LostError:
                cut = True
            except NotFoundError:
                if first:
                    raise
                return
            if ended:
                return
            first, ended = False, self._has_ended(name)
            if ended and not cut:
                return
            if not ended:
                time.sleep(REOPEN_S)

    def warnings(self) -> Iterator[Json]:
        """Yield the events of the namespace that warn of a pod: those that Kubernetes still has, then those that come.

        Raises:
            ServiceError: Also where nobody may see them, and where none comes for a while.
        """
        of_pods = {"listOptions.fieldSelector": "involvedObject.kind=Pod,type=Warning"}
        yield from self._stream(f"stream/events/{self._namespace}", "watch events", "list of events", None, of_pods)

    def _lines(self, name: str, follow: bool) -> Iterator[tuple[str, str]]:
        query = {"logOptions.container": "main", "logOptions.follow": str(follow).lower()}
        silence_s = SILENCE_S if follow else None
        for item in self._stream(f"{self._path(name)}/log", "get pods/log", f"log of {name}", silence_s, query):
            yield item.get("podName", ""), item.get("content", "")

    def _stream(
        self, path: str, right: str, what: str, silence_s: float | None, params: dict[str, str]
    ) -> Iterator[Json]:
        import requests

        # Only a stream of events is kept alive by the server while there is nothing to say.
        headers = {"Accept": "text/event-stream"}
        answer = self._send("GET", path, right, silence_s=silence_s, params=params, headers=headers, stream=True)
        try:
            for line in answer.iter_lines():
                text = line.removeprefix(b"data:").strip()
                if not text or text.startswith(b":"):
                    continue
                entry = json.loads(text)
                if "error" in entry:
                    raise ServiceError(f"Argo's {what} ended: {entry['error'].get('message', entry['error'])}")
                yield entry.get("result", {})
        except (requests.RequestException, ValueError) as error:
            raise _LostError(
                f"{self._api.name} {self._api.url} stopped answering.", "The run goes on; ask again."
            ) from error
        finally:
            answer.close()

    def _has_ended(self, name: str) -> bool:
        try:
            return self.get(name).get("status", {}).get("phase", "") in ENDED
        except NotFoundError:
            return True

    def _body(self, **parts: Any) -> Json:
        return {"namespace": self._namespace, **parts}

    def _path(self, name: str) -> str:
        return f"workflows/{self._namespace}/{quote(name, safe='')}"

    def _find(self, name: str, why: ShopfloorError) -> Json | None:
        """Return the workflow if there is one.

        Raises:
            ServiceError: Nobody can say at this moment.
        """
        try:
            return self.get(name)
        except NotFoundError:
            return None
        except ServiceError as error:
            raise ServiceError(
                f"{why.message} Whether it has begun {name} is not known.",
                f"Look with `argo get -n {self._namespace} {name}` before you submit again.",
            ) from error

    def _ask(
        self,
        method: str,
        path: str,
        right: str,
        body: Json | None = None,
        params: dict[str, str] | None = None,
        at_name_taken: str | None = None,
    ) -> Json:
        at_name_taken = at_name_taken or (_AT_RUN if method == "POST" else _AT_CHANGE)
        answer = self._send(method, path, right, at_name_taken=at_name_taken, json=body, params=params)
        try:
            content = answer.json()
        except ValueError as error:
            raise self._api.another() from error
        if not isinstance(content, dict):
            raise self._api.another()
        return content

    def _send(
        self,
        method: str,
        path: str,
        right: str,
        at_name_taken: str = _AT_CHANGE,
        silence_s: float | None = None,
        **options: Any,
    ) -> Any:
        """Return the server's answer, or raise what it means that there is none or a bad one."""
        import requests

        token = self._settings.cluster.token(TOKEN_VARIABLE)
        limit_s = self._settings.request_timeout_s
        url = f"{self._api.url}/api/v1/{path}"

        def sign(request: Any) -> Any:
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            return request

        # As a function and not a header: a .netrc that names the host would take the header's place.
        options["auth"] = sign
        try:
            answer = requests.request(
                method, url, timeout=(limit_s, silence_s or limit_s), allow_redirects=False, **options
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, ValueError) as error:
            raise UsageError(f"{self._api.url!r} is no address of an Argo server.", "Mend cluster.argo_url.") from error
        except requests.exceptions.SSLError as error:
            raise self._api.untrusted() from error
        except requests.Timeout as error:
            raise _LostError(*self._api.silent(limit_s)) from error
        except requests.RequestException as error:
            raise _LostError(*self._api.silent(None)) from error
        if answer.status_code >= 300:
            try:
                body = answer.json()
            except ValueError:
                body = None
            raise self._api.refused(answer.status_code, body, token, right, at_name_taken)
        return answer


class _LostError(ServiceError):
    """No answer came: what was asked for may have been done or not."""
