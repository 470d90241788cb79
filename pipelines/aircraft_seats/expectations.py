"""What the register of aircraft must look like before anything is learnt from it."""

from __future__ import annotations

from typing import Any


def suites() -> dict[str, list[Any]]:
    """Return the Great Expectations expectations of each table."""
    import great_expectations.expectations as gxe

    return {
        "planes": [
            gxe.ExpectTableRowCountToBeBetween(min_value=1000),
            gxe.ExpectColumnValuesToBeUnique(column="tailnum"),
            gxe.ExpectColumnValuesToNotBeNull(column="model"),
            gxe.ExpectColumnValuesToBeBetween(column="seats", min_value=1, max_value=600),
            gxe.ExpectColumnValuesToBeBetween(column="engines", min_value=1, max_value=4),
            gxe.ExpectColumnValuesToBeBetween(column="year", min_value=1950, max_value=2013, severity="warning"),
        ]
    }
