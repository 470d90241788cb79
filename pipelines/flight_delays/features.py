"""What is known of a flight at its scheduled departure: schedule, recent delays, weather, aircraft.

The delay rates count landed flights only: running counts by landing time, read at the asking time and at the beginning
of the window, by an ASOF join each. Feast joins the rest at the asking time. Nothing here looks past it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SERVICE = "flight_delays"
LATE_MINUTES = 15
WINDOWS_H: dict[str, tuple[int, ...]] = {
    "origin": (2, 6, 24),
    "carrier": (6, 24, 168),
    "dest": (6, 24),
    "route": (24, 168),
}
"""For each key the windows, in hours before the asking time, over which its late rate is taken."""

SCHEDULE = ("departure_hour", "departure_minute", "day_of_week", "distance_miles", "scheduled_minutes")
RATES = tuple(f"{key}_late_rate_{hours}h" for key, windows in WINDOWS_H.items() for hours in windows)
WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
AIRCRAFT = ("aircraft_age_years", "aircraft_seats")


def source_tables(tables: Path, out: Path) -> None:
    """Write what Feast reads: `flight_history`, `weather` and `aircraft`, each with an `event_timestamp`.

    Args:
        tables: Directory with the parquet files of the data version.
        out: Directory for one parquet file a feature view.
    """
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            f"""
            CREATE TABLE flights AS
            SELECT flight_id, scheduled_departure AS asked_at, landed_at, (arr_delay > {LATE_MINUTES})::INT AS late,
                origin, carrier, dest, origin || '-' || dest AS route,
                hour::BIGINT AS departure_hour, minute::BIGINT AS departure_minute,
                isodow(make_date(year, month, day)) AS day_of_week, distance::BIGINT AS distance_miles,
                (epoch(scheduled_arrival - scheduled_departure) / 60)::BIGINT AS scheduled_minutes
            FROM '{tables}/flights.parquet'
            """  # noqa: S608  our own path
        )
        rates = [_rates(connection, key, windows) for key, windows in WINDOWS_H.items()]
        joins = " ".join(f"JOIN {name} USING (flight_id)" for name in rates)
        connection.execute(
            f"""
            COPY (
                SELECT flight_id, asked_at AS event_timestamp, {", ".join((*SCHEDULE, *RATES))}
                FROM flights {joins} ORDER BY flight_id
            ) TO '{out}/flight_history.parquet' (FORMAT parquet)
            """  # noqa: S608
        )
        connection.execute(
            f"""
            COPY (
                SELECT origin, time_hour AS event_timestamp, {", ".join(WEATHER)}
                FROM '{tables}/weather.parquet' ORDER BY origin, time_hour
            ) TO '{out}/weather.parquet' (FORMAT parquet)
            """  # noqa: S608
        )
        connection.execute(
            f"""
            COPY (
                SELECT tailnum, TIMESTAMPTZ '2000-01-01' AS event_timestamp,
                    (2013 - year)::DOUBLE AS aircraft_age_years, seats::DOUBLE AS aircraft_seats
                FROM '{tables}/planes.parquet' ORDER BY tailnum
            ) TO '{out}/aircraft.parquet' (FORMAT parquet)
            """  # noqa: S608
        )


def definitions(source: Callable[[str], str]) -> list[Any]:
    """Return the Feast objects of the use case.

    Args:
        source: Gives the URI of the parquet file of a feature view.
    """
    from datetime import timedelta

    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    flight = Entity(name="flight", join_keys=["flight_id"], value_type=ValueType.INT64)
    airport = Entity(name="origin_airport", join_keys=["origin"], value_type=ValueType.STRING)
    plane = Entity(name="plane", join_keys=["tailnum"], value_type=ValueType.STRING)

    def view(name: str, entity: Entity, fields: list[Field], ttl: timedelta | None = None) -> FeatureView:
        where = FileSource(name=f"{name}_source", path=source(name), timestamp_field="event_timestamp")
        return FeatureView(name=name, entities=[entity], schema=fields, source=where, ttl=ttl)

    history = view(
        "flight_history",
        flight,
        [Field(name=name, dtype=Int64) for name in SCHEDULE] + [Field(name=name, dtype=Float64) for name in RATES],
    )
    # An observation older than this says little about the weather now.
    weather = view("weather", airport, [Field(name=name, dtype=Float64) for name in WEATHER], ttl=timedelta(hours=6))
    aircraft = view("aircraft", plane, [Field(name=name, dtype=Float64) for name in AIRCRAFT])
    service = FeatureService(name=SERVICE, features=[history, weather, aircraft])
    return [flight, airport, plane, history, weather, aircraft, service]


def rows(tables: Path) -> pd.DataFrame:
    """Return the rows to learn from: the entities, the asking time and the label `late`.

    A flight that was cancelled or diverted has no label and is no row.
    """
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(
            f"""
            SELECT flight_id, carrier, origin, dest, tailnum, scheduled_departure AS event_timestamp,
                (arr_delay > {LATE_MINUTES})::TINYINT AS late
            FROM '{tables}/flights.parquet' WHERE arr_delay IS NOT NULL ORDER BY flight_id
            """  # noqa: S608
        ).df()


def _rates(connection: Any, key: str, windows: tuple[int, ...]) -> str:
    """Make the table `<key>_rates`: the share of late flights among those landed within each window."""
    connection.execute(
        f"""
        CREATE TABLE {key}_landed AS
        SELECT DISTINCT {key}, landed_at,
            count(*) OVER running AS landed, sum(late) OVER running AS late
        FROM flights WHERE landed_at IS NOT NULL
        WINDOW running AS (PARTITION BY {key} ORDER BY landed_at RANGE UNBOUNDED PRECEDING)
        """  # noqa: S608
    )
    # Many flights ask at the same minute: each key and time is asked once.
    begins = " ".join(
        f"""ASOF LEFT JOIN {key}_landed b{hours}
            ON b{hours}.{key} = f.{key} AND b{hours}.landed_at <= f.asked_at - INTERVAL {hours} HOUR"""
        for hours in windows
    )
    shares = ", ".join(
        f"(n.late - coalesce(b{hours}.late, 0))::DOUBLE / nullif(n.landed - coalesce(b{hours}.landed, 0), 0)"
        f" AS {key}_late_rate_{hours}h"
        for hours in windows
    )
    names = ", ".join(f"{key}_late_rate_{hours}h" for hours in windows)
    connection.execute(
        f"""
        CREATE TABLE {key}_rates AS
        WITH asked AS (SELECT DISTINCT {key}, asked_at FROM flights), answered AS (
            SELECT f.{key}, f.asked_at, {shares} FROM asked f
            ASOF LEFT JOIN {key}_landed n ON n.{key} = f.{key} AND n.landed_at <= f.asked_at {begins}
        )
        SELECT flight_id, {names} FROM flights JOIN answered USING ({key}, asked_at)
        """  # noqa: S608
    )
    return f"{key}_rates"
