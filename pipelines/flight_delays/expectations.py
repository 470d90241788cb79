"""What the tables must look like before anything is trained on them.

A critical expectation that is unmet stops the run; a warning is shown and counted.
"""

from __future__ import annotations

from typing import Any

ORIGINS = ["EWR", "JFK", "LGA"]
CARRIERS = ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"]
TIME = "Timestamp"


def suites() -> dict[str, list[Any]]:
    """Return the Great Expectations expectations of each table."""
    import great_expectations.expectations as gxe

    def types(**columns: str) -> list[Any]:
        return [gxe.ExpectColumnValuesToBeOfType(column=name, type_=kind) for name, kind in columns.items()]

    def complete(*columns: str) -> list[Any]:
        return [gxe.ExpectColumnValuesToNotBeNull(column=name) for name in columns]

    def between(column: str, low: float, high: float, severity: str = "critical", mostly: float = 1.0) -> Any:
        return gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=low, max_value=high, severity=severity, mostly=mostly
        )

    return {
        "flights": [
            gxe.ExpectTableRowCountToBeBetween(min_value=1000),
            gxe.ExpectColumnValuesToBeUnique(column="flight_id"),
            gxe.ExpectCompoundColumnsToBeUnique(
                column_list=["carrier", "flight", "origin", "dest", "time_hour", "minute"]
            ),
            *types(flight_id="int64", scheduled_departure=TIME, scheduled_arrival=TIME, landed_at=TIME),
            *types(distance="int64", hour="int64", minute="int64"),
            gxe.ExpectColumnValuesToBeInTypeList(column="arr_delay", type_list=["float64", "int64"]),
            *complete("scheduled_departure", "scheduled_arrival", "carrier", "origin", "dest", "distance"),
            gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=ORIGINS),
            gxe.ExpectColumnValuesToBeInSet(column="carrier", value_set=CARRIERS),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="landed_at", column_B="scheduled_departure", ignore_row_if="either_value_is_missing"
            ),
            between("distance", 10, 6000),
            between("hour", 0, 23),
            between("minute", 0, 59),
            between("arr_delay", -180, 1800),
            gxe.ExpectColumnValuesToNotBeNull(column="arr_delay", mostly=0.8),
            gxe.ExpectColumnValuesToNotBeNull(column="tailnum", mostly=0.95, severity="warning"),
        ],
        "weather": [
            gxe.ExpectTableRowCountToBeBetween(min_value=24),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["origin", "time_hour"]),
            *types(time_hour=TIME, temp="float64", wind_speed="float64", precip="float64", visib="float64"),
            *complete("origin", "time_hour"),
            gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=ORIGINS),
            between("temp", -40, 130),
            between("humid", 0, 100),
            between("precip", 0, 10),
            between("visib", 0, 10),
            between("wind_speed", 0, 100, severity="warning"),
        ],
        "planes": [
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
            gxe.ExpectColumnValuesToBeUnique(column="tailnum"),
            *types(seats="int64"),
            *complete("tailnum"),
            between("seats", 1, 600),
            between("year", 1950, 2013, severity="warning"),
        ],
        "airports": [
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
            gxe.ExpectColumnValuesToBeUnique(column="faa"),
            between("lat", -90, 90),
            between("lon", -180, 180),
        ],
        "airlines": [
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
            gxe.ExpectColumnValuesToBeUnique(column="carrier"),
            *complete("name"),
        ],
    }
