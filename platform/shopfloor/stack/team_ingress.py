"""What lets the endpoints of a team be asked from outside of the cluster, by TLS and by a name of the team's own.

`manifests/components/ingress` says which controller it is and who signs its certificates. Each request still needs one
of the team's tokens.
"""

from __future__ import annotations

from typing import Any

from shopfloor.stack.teams import Team

SERVICE, PORT = "shopfloor-serve-serve-svc", 8000
"""Service of the team's endpoints, in `manifests/base/team/serve`."""
FROM_OUTSIDE = "shopfloor.io/ingress"
"""Label of the namespace in which the cluster's ingress controller runs: the platform team puts it there."""
TLS_SECRET = "endpoints-tls"  # noqa: S105  a name
"""Secret with the certificate: cert-manager makes it, or the platform team."""
Json = dict[str, Any]


def objects(team: Team) -> list[Json]:
    """Return the Ingress of a team's endpoints and the policy that lets it in; nothing for a team without a host."""
    if team.host is None:
        return []
    backend = {"service": {"name": SERVICE, "port": {"number": PORT}}}
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "endpoints"},
        "spec": {
            "tls": [{"hosts": [team.host], "secretName": TLS_SECRET}],
            "rules": [
                {"host": team.host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
            ],
        },
    }
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "ingress"},
        "spec": {
            "podSelector": {"matchLabels": {"ray.io/cluster": "shopfloor-serve", "ray.io/node-type": "worker"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"namespaceSelector": {"matchLabels": {FROM_OUTSIDE: "true"}}}],
                    "ports": [{"port": PORT}],
                }
            ],
        },
    }
    return [ingress, policy]
