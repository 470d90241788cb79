"""Pipelines of our own, one for each feature of KFP's SDK, compiled when the tests run.

`CASES` says of each with what it runs, and what its steps give. What a step gives is KFP's documented meaning; where
`kfp.local` gives the same, a test compares the two besides.
"""

from tests.pipelines import artifacts, containers, control, failures, settings, values
from tests.pipelines.case import Case

CASES: dict[str, Case] = {
    name: case
    for module in (values, control, failures, artifacts, containers, settings)
    for name, case in module.CASES.items()
}
