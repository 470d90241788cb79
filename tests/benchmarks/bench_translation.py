"""Translation of a pipeline of 1,000 tasks to an Argo Workflow: seconds, and what etcd must store of it.

Its peer is KFP's own compiler on the same pipeline: what a user waits for in any case.
"""

import json
import time

from google.protobuf import json_format
from kfp import dsl
from shopfloor.engines.argo.translation import translate
from shopfloor.settings import Settings

from tests.benchmarks.table import Row

TASKS = 1000


@dsl.component(base_image="shopfloor/platform:0.1.0", install_kfp_package=False)
def add(number: int, other: int) -> int:
    """Return the sum."""
    return number + other


def chain() -> dsl.base_component.BaseComponent:
    """Return a pipeline of tasks that each take the output of the one before."""

    @dsl.pipeline(name="chain")
    def pipeline(start: int = 0):
        total = add(number=start, other=0)
        for number in range(1, TASKS):
            total = add(number=total.output, other=number)

    return pipeline


def measure() -> list[Row]:
    """Return a row for the time and one for the size."""
    began = time.perf_counter()
    ir = json_format.MessageToDict(chain().pipeline_spec)
    compiled = time.perf_counter() - began
    settings = Settings(project_root="/project", artifact_root="s3://shopfloor/artifacts")
    translate(ir, {}, {}, settings)
    began = time.perf_counter()
    manifest = translate(ir, {}, {}, settings)
    translated = time.perf_counter() - began
    size = len(json.dumps(manifest, separators=(",", ":")).encode())
    return [
        Row(
            name=f"translation to Argo, {TASKS:,} tasks",
            ours=f"{translated:.2f} s",
            peer=f"KFP's compiler {compiled:.2f} s",
            ratio=translated / compiled,
            target="<= 2 s",
            ok=translated <= 2,
        ),
        Row(
            name=f"its Workflow, {TASKS:,} tasks",
            ours=f"{size / 1024:.0f} KiB",
            peer="etcd's limit 1024 KiB",
            ratio=size / 1024**2,
            target="< 1 MiB",
            ok=size < 1024**2,
        ),
    ]
