"""Nothing that we start tells anybody's servers what it does."""

import subprocess
import sys

from shopfloor.environment import NO_REPORTS
from shopfloor.settings import Settings


def test_every_child_process_is_told_to_report_nothing(tmp_path):
    assert Settings(project_root=tmp_path).environment().items() >= NO_REPORTS.items()


def test_a_process_that_imports_mlflow_as_we_do_has_no_telemetry(monkeypatch):
    for name in ("CI", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    program = (
        "from shopfloor.runs.mlflow import import_mlflow; import_mlflow();"
        "from mlflow.telemetry.client import get_telemetry_client; print(get_telemetry_client())"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout == "None\n"
