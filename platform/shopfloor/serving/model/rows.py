"""Many rows of numbers in one request, on their way to a matrix: checked column by column, without a DataFrame.

What comes in the usual form is read and checked in one pass. Anything else (columns in another order, a field that is
wrong) is left to whoever reads slowly and says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import SchemaValidator, ValidationError, core_schema

from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.row import FLOAT32_MAX, RowSchema, bad_fields

if TYPE_CHECKING:
    import numpy as np

SPLIT, RECORDS = "dataframe_split", "dataframe_records"


class ManyRows:
    """The columns of a model, all of them numbers."""

    def __init__(self, rows: RowSchema) -> None:
        """Derive the checks from those of one row."""
        self.columns = rows.columns
        self.single_precision = rows.single_precision
        self._names = [column.name for column in rows.columns]
        self._required = [column.required for column in rows.columns]
        self._limit = f" of at most {FLOAT32_MAX}" if rows.single_precision else ""
        one = core_schema.typed_dict_schema(rows.fields(), extra_behavior="ignore")
        row = core_schema.tuple_schema(rows.values(), fail_fast=True)
        split = {
            "columns": core_schema.typed_dict_field(core_schema.list_schema(core_schema.str_schema())),
            "data": core_schema.typed_dict_field(core_schema.list_schema(row, fail_fast=True)),
        }
        self._validators = {
            SPLIT: _only(SPLIT, core_schema.typed_dict_schema(split, extra_behavior="forbid")),
            RECORDS: _only(RECORDS, core_schema.list_schema(one, fail_fast=True)),
        }
        self._columns = {
            column.name: SchemaValidator(core_schema.list_schema(value, fail_fast=True))
            for column, value in zip(rows.columns, rows.values(), strict=True)
        }

    def parse(self, body: bytes, *, strangers: bool = True) -> list[Sequence[Any]] | None:
        """Return the rows of one of MLflow's formats, values in column order; `None` where it is not the usual form.

        Args:
            body: In JSON.
            strangers: Whether rows may have fields that are no columns, which are ignored then.
        """
        form = SPLIT if SPLIT.encode() in body[:100] else RECORDS
        try:
            content = self._validators[form].validate_json(body, extra=None if strangers else "forbid")[form]
        except (ValidationError, ValueError):
            return None
        if form == RECORDS:
            return [list(row.values()) for row in content]
        rows: list[Sequence[Any]] = content["data"]
        return rows if content["columns"] == self._names else None

    def matrix(self, rows: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return checked rows as a matrix, NaN where a value is missing."""
        import numpy as np

        return np.array(rows, dtype=self._dtype())

    def stack(self, tensors: Mapping[str, Any]) -> np.ndarray:
        """Return a matrix of columns, each a list as JSON has it or an array.

        Args:
            tensors: Name to items, all of one length; the columns that may be missing may be left out.

        Raises:
            BadRequest: 422 where an item is none that its column takes; the columns are named.
        """
        import numpy as np

        rows = len(next(iter(tensors.values())))
        matrix = np.full((rows, len(self._names)), np.nan, dtype=self._dtype(), order="F")  # a column is one piece
        problems = {}
        with np.errstate(over="ignore"):  # a number too large for 32 bits becomes infinite, and is refused below
            for number, name in enumerate(self._names):
                items = tensors.get(name)
                if isinstance(items, list):
                    problem = self._refused(name, items)
                    if problem:
                        problems[name] = problem
                    else:
                        matrix[:, number] = np.array(items, dtype=matrix.dtype)  # null becomes NaN
                elif items is not None:
                    matrix[:, number] = items
        # Nothing has looked at what came as bytes yet.
        for name in self._where(np.isinf(matrix)):
            problems.setdefault(name, f"must be a finite number{self._limit}")
        for name in self._where(np.isnan(matrix) & self._required):
            problems.setdefault(name, "is missing in a row")
        if problems:
            raise bad_fields([{"field": name, "problem": problem} for name, problem in problems.items()])
        return matrix

    def _where(self, wrong: np.ndarray) -> list[str]:
        """Return the names of the columns in which an item is marked."""
        return [name for number, name in enumerate(self._names) if wrong[:, number].any()]

    def _refused(self, name: str, items: list[Any]) -> str:
        try:
            self._columns[name].validate_python(items)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            return f"{str(first['msg']).replace('Input should be', 'must be')}, and is not in row {first['loc'][0]}"
        return ""

    def _dtype(self) -> Any:
        import numpy as np

        return np.float32 if self.single_precision else np.float64


def too_many(rows: int, max_rows: int) -> BadRequest:
    """Return the refusal of a request with more rows than are answered at once."""
    return BadRequest(413, f"The request holds {rows} rows; at most {max_rows} are answered at once.")


def _only(name: str, schema: core_schema.CoreSchema) -> SchemaValidator:
    return SchemaValidator(
        core_schema.typed_dict_schema({name: core_schema.typed_dict_field(schema)}, extra_behavior="forbid")
    )
