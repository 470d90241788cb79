"""What is known of a flight at its scheduled departure: schedule, recent delays, weather, aircraft.

The delay rates count landed flights only: running counts by landing time, read at the asking time and at the beginning
of the window, by an ASOF join each. Feast joins the rest at the asking time. Nothing here looks past it.

A request may name a flight instead of sending its features: `online_tables` and `online_definitions` say what the
online store holds by carrier, airport, route and aircraft, and `at_request` what the schedule says by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

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
FRESH = timedelta(hours=6)
"""An observation older than this says little about now."""
ORIGINS_TIME = ZoneInfo("America/New_York")


def source_tables(tables: Path, out: Path) -> None:
    """Write what Feast reads: `flight_history`, `weather` and `aircraft`, each with an `event_timestamp`.

    Args:
        tables: Directory with the parquet files of the data version.
        out: Directory for one parquet file a feature view.
    """
    import duckdb

    with duckdb.connect() as connection:
        _read_flights(connection, tables)
        for key, windows in WINDOWS_H.items():
            _rates(connection, key, windows, f"SELECT DISTINCT {key}, asked_at FROM flights")  # noqa: S608
        joins = " ".join(f"JOIN {key}_rates USING ({key}, asked_at)" for key in WINDOWS_H)
        _write(
            connection,
            out / "flight_history.parquet",
            f"""
            SELECT flight_id, asked_at AS event_timestamp, {", ".join((*SCHEDULE, *RATES))}
            FROM flights {joins} ORDER BY flight_id
            """,  # noqa: S608
        )
        _write_weather_and_aircraft(connection, tables, out)


def definitions(source: Callable[[str], str]) -> list[Any]:
    """Return the Feast objects of the use case.

    Args:
        source: Gives the URI of the parquet file of a feature view.
    """
    from feast import Entity, FeatureService, ValueType

    flight = Entity(name="flight", join_keys=["flight_id"], value_type=ValueType.INT64)
    airport = Entity(name="origin_airport", join_keys=["origin"], value_type=ValueType.STRING)
    plane = Entity(name="plane", join_keys=["tailnum"], value_type=ValueType.STRING)
    views = [
        _view(source, "flight_history", flight, RATES, whole=SCHEDULE),
        _view(source, "weather", airport, WEATHER, ttl=FRESH),
        _view(source, "aircraft", plane, AIRCRAFT),
    ]
    return [flight, airport, plane, *views, FeatureService(name=SERVICE, features=views)]


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


def online_tables(tables: Path, out: Path) -> None:
    """Write what the online store holds: late rates as of the last landing, weather, aircraft and distances.

    Args:
        tables: Directory with the parquet files of the data version.
        out: Directory for one parquet file a feature view.
    """
    import duckdb

    with duckdb.connect() as connection:
        _read_flights(connection, tables)
        for key, windows in WINDOWS_H.items():
            last = f"SELECT DISTINCT {key}, (SELECT max(landed_at) FROM flights) AS asked_at FROM flights"  # noqa: S608
            _rates(connection, key, windows, last)
            rates = f"SELECT * RENAME (asked_at AS event_timestamp) FROM {key}_rates ORDER BY {key}"  # noqa: S608
            _write(connection, out / f"{key}_delays.parquet", rates)
        _write(
            connection,
            out / "route_distance.parquet",
            """
            SELECT route, TIMESTAMPTZ '2000-01-01' AS event_timestamp, max(distance_miles) AS distance_miles
            FROM flights GROUP BY route ORDER BY route
            """,
        )
        _write_weather_and_aircraft(connection, tables, out)


def online_definitions(source: Callable[[str], str]) -> list[Any]:
    """Return the Feast objects of the online store, whose feature service has the name of the offline one.

    Args:
        source: Gives the URI of the parquet file of a feature view.
    """
    from feast import Entity, FeatureService, ValueType

    entities = {key: Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in (*WINDOWS_H, "tailnum")}
    views = [
        _view(source, f"{key}_delays", entities[key], [f"{key}_late_rate_{hours}h" for hours in windows], ttl=FRESH)
        for key, windows in WINDOWS_H.items()
    ]
    views += [
        _view(source, "route_distance", entities["route"], [], whole=["distance_miles"]),
        _view(source, "weather", entities["origin"], WEATHER, ttl=FRESH),
        _view(source, "aircraft", entities["tailnum"], AIRCRAFT),
    ]
    return [*entities.values(), *views, FeatureService(name=SERVICE, features=views)]


def at_request(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a request says by itself: its route and the schedule's features.

    Args:
        row: What the request says; times are in UTC.
    """
    known: dict[str, Any] = {}
    if "origin" in row and "dest" in row:
        known["route"] = f"{row['origin']}-{row['dest']}"
    if "scheduled_departure" in row:
        departure = row["scheduled_departure"]
        local = departure.astimezone(ORIGINS_TIME)
        known |= {
            "event_timestamp": departure,
            "departure_hour": local.hour,
            "departure_minute": local.minute,
            "day_of_week": local.isoweekday(),
        }
        if "scheduled_arrival" in row:
            known["scheduled_minutes"] = round((row["scheduled_arrival"] - departure).total_seconds() / 60)
    return known


def _view(
    source: Callable[[str], str],
    name: str,
    entity: Any,
    numbers: Iterable[str],
    whole: Iterable[str] = (),
    ttl: timedelta | None = None,
) -> Any:
    """Return a feature view over the parquet file of its name."""
    from feast import FeatureView, Field, FileSource
    from feast.types import Float64, Int64

    fields = [Field(name=number, dtype=Int64) for number in whole]
    fields += [Field(name=number, dtype=Float64) for number in numbers]
    where = FileSource(name=f"{name}_source", path=source(name), timestamp_field="event_timestamp")
    return FeatureView(name=name, entities=[entity], schema=fields, source=where, ttl=ttl)


def _read_flights(connection: Any, tables: Path) -> None:
    """Make the table `flights`, with what is known of each when it is asked about, and how it ended."""
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


def _write_weather_and_aircraft(connection: Any, tables: Path, out: Path) -> None:
    _write(
        connection,
        out / "weather.parquet",
        f"""
        SELECT origin, time_hour AS event_timestamp, {", ".join(WEATHER)}
        FROM '{tables}/weather.parquet' ORDER BY origin, time_hour
        """,  # noqa: S608
    )
    _write(
        connection,
        out / "aircraft.parquet",
        f"""
        SELECT tailnum, TIMESTAMPTZ '2000-01-01' AS event_timestamp,
            (2013 - year)::DOUBLE AS aircraft_age_years, seats::DOUBLE AS aircraft_seats
        FROM '{tables}/planes.parquet' ORDER BY tailnum
        """,  # noqa: S608
    )


def _write(connection: Any, file: Path, query: str) -> None:
    connection.execute(f"COPY ({query}) TO '{file}' (FORMAT parquet)")


def _rates(connection: Any, key: str, windows: tuple[int, ...], asked: str) -> None:
    """Make the table `<key>_rates`: the share of late flights among those landed within each window before `asked_at`.

    Args:
        connection: Has the table `flights`.
        key: One of its columns.
        windows: In hours.
        asked: A query for keys and times, each once.
    """
    connection.execute(
        f"""
        CREATE TABLE {key}_landed AS
        SELECT DISTINCT {key}, landed_at,
            count(*) OVER running AS landed, sum(late) OVER running AS late
        FROM flights WHERE landed_at IS NOT NULL
        WINDOW running AS (PARTITION BY {key} ORDER BY landed_at RANGE UNBOUNDED PRECEDING)
        """  # noqa: S608
    )
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
    connection.execute(
        f"""
        CREATE TABLE {key}_rates AS
        SELECT f.{key}, f.asked_at, {shares} FROM ({asked}) f
        ASOF LEFT JOIN {key}_landed n ON n.{key} = f.{key} AND n.landed_at <= f.asked_at {begins}
        """  # noqa: S608
    )
