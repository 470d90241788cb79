"""The data gate: a use case's expectations against every table, by Great Expectations.

A column that is missing is one unmet check, not one for each expectation about it. The results and the Data Docs are
published also when the gate refuses the data, so that the refusal can be looked at.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shopfloor.environment import NO_REPORTS
from shopfloor.errors import DataError, UsageError
from shopfloor.records import Check, Checks
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, Metrics, local_copy, publish, scratch
from shopfloor.use_case import load_use_case

logger = logging.getLogger(__name__)

_COLUMN_FIELDS = ("column", "column_A", "column_B", "column_list")


def validate(settings: Settings, use_case_name: str, tables_uri: str, checks: Artifact, metrics: Metrics) -> None:
    """Check every table of a data version.

    Args:
        settings: Say where artifacts are.
        use_case_name: Its `expectations.py` has `suites()`, which returns table to expectations.
        tables_uri: What `pull_data` made.
        checks: Gets `checks.json` and `data_docs/`.
        metrics: Gets the number of checks and of unmet ones.

    Raises:
        DataError: A critical expectation is unmet; one line for each.
        UsageError: The expectations name a table that the use case does not have.
    """
    use_case = load_use_case(settings, use_case_name)
    suites: dict[str, list[Any]] = use_case.code("expectations").suites()
    unknown = sorted(set(suites) - set(use_case.data.tables))
    if unknown:
        raise UsageError(
            f"expectations.py of {use_case_name} names the table {unknown[0]!r}.",
            f"use_case.yaml has the tables {', '.join(use_case.data.tables)}.",
        )
    directory = local_copy(settings, tables_uri)
    with scratch(settings.private_state_dir()) as work:
        result = _run(work, directory, {table: suites.get(table, []) for table in use_case.data.tables})
        text = result.model_dump_json(indent=1)
        content = hashlib.sha256(text.encode()).hexdigest()
        # The pages hold the time at which they were made, which is no part of the result.
        with publish(settings, checks, "validate_data", content_hash=content) as target:
            (target / "checks.json").write_text(text, encoding="utf-8")
            shutil.copytree(work / "gx" / "uncommitted" / "data_docs" / "local_site", target / "data_docs")
    unmet = [check for check in result.checks if not check.success]
    metrics.log_metric("checks", len(result.checks))
    metrics.log_metric("unmet", len(unmet))
    for check in unmet:
        logger.warning("%s", _describe(check))
    if not result.success:
        lines = [_describe(check) for check in unmet if check.critical]
        raise DataError("The data do not meet the expectations:\n" + "\n".join(lines), f"\nData Docs: {checks.uri}")


def _run(work: Path, directory: Path, suites: dict[str, list[Any]]) -> Checks:
    os.environ.update(NO_REPORTS)  # before it is imported
    import great_expectations as gx
    import pandas as pd

    context = gx.get_context(mode="file", project_root_dir=str(work))
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment,unused-ignore]
    source = context.data_sources.add_pandas("tables")
    checks: list[Check] = []
    for table, expectations in suites.items():
        frame = pd.read_parquet(directory / f"{table}.parquet")
        suite = gx.ExpectationSuite(name=table, expectations=list(_for_columns(expectations, frame.columns)))
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=table, data=batch, suite=context.suites.add(suite))
        outcome = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": frame}, result_format="SUMMARY"
        )
        checks += [_check(table, item) for item in outcome.results]
    context.build_data_docs()
    return Checks(success=all(check.success or not check.critical for check in checks), checks=checks)


def _for_columns(expectations: Iterable[Any], columns: Iterable[str]) -> Iterable[Any]:
    """Yield the expectations that the columns allow, and one for each column that is missing."""
    import great_expectations.expectations as gxe

    present = set(columns)
    missing: set[str] = set()
    for expectation in expectations:
        values = [getattr(expectation, field, None) or [] for field in _COLUMN_FIELDS]
        absent = {name for value in values for name in ([value] if isinstance(value, str) else value)} - present
        if not absent:
            yield expectation
        missing |= absent
    for name in sorted(missing):
        yield gxe.ExpectColumnToExist(column=name)


def _check(table: str, item: Any) -> Check:
    configuration = item.expectation_config
    arguments = configuration.kwargs
    column = arguments.get("column") or ", ".join(
        arguments.get("column_list") or [arguments[key] for key in ("column_A", "column_B") if key in arguments]
    )
    return Check(
        table=table,
        expectation=_in_words(configuration.type, arguments),
        column=column or None,
        critical=str(getattr(configuration.severity, "value", configuration.severity)) == "critical",
        success=bool(item.success),
        observed=_observed(item),
    )


def _in_words(kind: str, arguments: dict[str, Any]) -> str:
    """Return `values to be between (min_value 0, max_value 23)` for GX's own name and arguments."""
    words = kind.removeprefix("expect_").replace("_", " ").removeprefix("column ").removeprefix("table ")
    hidden = {*_COLUMN_FIELDS, "batch_id", "severity", "result_format", "ignore_row_if", "strict_min", "strict_max"}
    details = [f"{name} {value}" for name, value in arguments.items() if name not in hidden and value is not None]
    return f"{words} ({', '.join(details)})" if details else words


def _observed(item: Any) -> str:
    result = item.result or {}
    if result.get("unexpected_count"):
        share = f"{result['unexpected_count']} of {result.get('element_count', '?')} rows"
        sample = [str(value) for value in result.get("partial_unexpected_list", [])[:3]]
        sample = [value for value in sample if value not in {"None", "nan", "NaT"}]
        return f"{share}, such as {', '.join(sample)}" if sample else share
    if "observed_value" in result:
        return f"observed {result['observed_value']}"
    if item.success:
        return "met"
    raised = next((info for info in [item.exception_info or {}] if info), {})
    message = raised.get("exception_message") or next(
        (str(info.get("exception_message")) for info in raised.values() if isinstance(info, dict)), "not there"
    )
    return str(message).splitlines()[0] if message else "not there"


def _describe(check: Check) -> str:
    place = f"{check.table}.{check.column}" if check.column else check.table
    return f"{place}: expected {check.expectation}, {check.observed}"
