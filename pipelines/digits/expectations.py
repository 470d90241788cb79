"""What the table of pictures must look like before anything is learnt from it."""

from __future__ import annotations

from typing import Any


def suites() -> dict[str, list[Any]]:
    """Return the Great Expectations expectations of each table."""
    import great_expectations.expectations as gxe

    return {
        "digits": [
            gxe.ExpectTableRowCountToBeBetween(min_value=100),
            gxe.ExpectColumnValuesToBeUnique(column="picture"),
            gxe.ExpectColumnValuesToMatchRegex(column="picture", regex=r"\.png$"),
            gxe.ExpectColumnValuesToBeInSet(column="digit", value_set=list(range(10))),
        ]
    }
