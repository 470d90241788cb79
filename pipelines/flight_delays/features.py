"""What is known of a flight at its scheduled departure: schedule, recent delays, weather, aircraft.

The delay rates count landed flights only: running counts by landing time, read at the asking time and at the beginning
of the window. Feast joins the rest at the asking time. Nothing here looks past it.

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
        flights = _read_flights(connection, tables)
        rates = [_rates(flights, key, flights[[key, "asked_at"]]) for key in WINDOWS_H]
        connection.register("history", flights[["flight_id"]].assign(**{k: v for one in rates for k, v in one.items()}))
        _write(
            connection,
            out / "flight_history.parquet",
            f"""
            SELECT flight_id, asked_at AS event_timestamp, {", ".join((*SCHEDULE, *RATES))}
            FROM flights JOIN history USING (flight_id) ORDER BY flight_id
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
        flights = _read_flights(connection, tables)
        for key in WINDOWS_H:
            last = flights[[key]].drop_duplicates().assign(asked_at=flights["landed_at"].max())
            connection.register("rates", last[[key]].assign(**_rates(flights, key, last)))
            at = "(SELECT max(landed_at) FROM flights)"
            rates = f"SELECT {key}, {at} AS event_timestamp, * EXCLUDE ({key}) FROM rates ORDER BY {key}"  # noqa: S608
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
    values: dict[str, Any] = {}
    if "origin" in row and "dest" in row:
        values["route"] = f"{row['origin']}-{row['dest']}"
    if "scheduled_departure" in row:
        departure = row["scheduled_departure"]
        local = departure.astimezone(ORIGINS_TIME)
        values |= {
            "event_timestamp": departure,
            "departure_hour": local.hour,
            "departure_minute": local.minute,
            "day_of_week": local.isoweekday(),
        }
        if "scheduled_arrival" in row:
            values["scheduled_minutes"] = round((row["scheduled_arrival"] - departure).total_seconds() / 60)
    return values


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


def _read_flights(connection: Any, tables: Path) -> pd.DataFrame:
    """Make the table `flights`, with what is known of each when it is asked about, and how it ended.

    Returns:
        Of each flight the keys of `WINDOWS_H`, its times in microseconds (`landed_at` missing where it did not) and
        whether it was late.
    """
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
    flights: pd.DataFrame = connection.sql(
        f"""
        SELECT flight_id, epoch_us(asked_at) AS asked_at, epoch_us(landed_at) AS landed_at, late, {", ".join(WINDOWS_H)}
        FROM flights
        """  # noqa: S608
    ).df()
    return flights.astype(dict.fromkeys(WINDOWS_H, "category"))


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


def _rates(flights: pd.DataFrame, key: str, questions: pd.DataFrame) -> dict[str, Any]:
    """Return the share of late flights among those of a key that landed within each window before a time.

    Args:
        flights: As `_read_flights` returns them.
        key: One of `WINDOWS_H`.
        questions: Keys, and times in microseconds as `asked_at`.

    Returns:
        Name of the feature to an array of floats, in the order of `questions`; NaN where no flight landed.
    """
    import numpy as np

    def places(keys: pd.Series, times: Any) -> Any:
        """Return one number for a key and a time, so that one sorted array holds the landings of all keys."""
        return keys.cat.codes.to_numpy(np.int64) * 2**52 + times  # room for 2,000 keys, and until the year 2112

    landed = flights[flights["landed_at"].notna()]
    ends = places(landed[key], landed["landed_at"].to_numpy(np.int64))
    order = np.argsort(ends)
    ends = ends[order]
    late = np.concatenate([[0], np.cumsum(landed["late"].to_numpy(np.int64)[order])])
    times = questions["asked_at"].to_numpy(np.int64)
    until = np.searchsorted(ends, places(questions[key], times), side="right")
    rates = {}
    for hours in WINDOWS_H[key]:
        since = np.searchsorted(ends, places(questions[key], times - hours * 3_600_000_000), side="right")
        with np.errstate(invalid="ignore"):
            rates[f"{key}_late_rate_{hours}h"] = (late[until] - late[since]) / (until - since)
    return rates
