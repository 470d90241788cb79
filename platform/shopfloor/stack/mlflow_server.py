"""MLflow's own server application in one process: `python -m shopfloor.stack.mlflow_server PORT DIRECTORY`.

The same as `mlflow server --workers 1`, which imports MLflow in two processes, one after the other, and keeps both:
this one takes half the time and memory. The port is taken before the imports, so that a taken one fails at once.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def main(port: int, directory: Path) -> None:
    """Serve until asked to stop: runs and models in `directory/mlflow.db`, files in `directory/artifacts`.

    Args:
        port: On 127.0.0.1.
        directory: Made where it does not exist.

    Raises:
        OSError: The port is taken, or the directory cannot be made.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    artifacts = directory / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)

    # MLflow sees by uvicorn's presence that it is a server, and then guards itself against foreign hosts and origins.
    import uvicorn
    from mlflow.server import constants
    from mlflow.server.handlers import initialize_backend_stores

    database = f"sqlite:///{directory / 'mlflow.db'}"
    proxied = "mlflow-artifacts:/"
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: proxied,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: str(artifacts),
    }
    initialize_backend_stores(database, database, proxied)
    from mlflow.server.fastapi_app import app

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
