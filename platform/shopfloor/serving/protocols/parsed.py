"""What a body is read by, and what comes of it: plain values, so that a large body can be read in another process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.row import NESTED, Column, RowSchema
from shopfloor.serving.model.rows import ManyRows

if TYPE_CHECKING:
    import numpy as np

    from shopfloor.serving.model.loading import ServedModel


class Form(BaseModel):
    """The inputs of a version, and how many rows of them a request may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    inputs: tuple[tuple[str, str, bool, str, tuple[str, ...], bool, int | None], ...] | None
    """The fields of each `Column`; `None` where the model takes no rows of them."""
    reason: str
    """Reason why it takes none."""
    single_precision: bool
    quick: bool
    """Whether rows of numbers skip MLflow's parser."""
    direct: bool
    """Whether rows of any columns skip it, and become a frame: where the model needs no more looks at them, and where
    a column holds lists or bytes, of which the parser has an opinion of its own."""
    signature: dict[str, Any] | None
    """MLflow's, which its parser goes by."""
    max_rows: int
    entities: tuple[tuple[str, str], ...] = ()
    """Name and type of what may come instead of the model's inputs; empty where no features are looked up."""

    @classmethod
    def of(cls, model: ServedModel, max_rows: int, entities: Mapping[str, str] | None = None) -> Form:
        """Return the form of a loaded version."""
        signature = model.pyfunc.metadata.signature
        rows = model.rows
        return cls(
            version=model.version,
            inputs=tuple(astuple(one) for one in rows.columns) if rows else None,
            reason=model.reason,
            single_precision=rows.single_precision if rows else False,
            quick=model.native is not None,
            direct=model.direct is not None or bool(rows and any(one.type in NESTED for one in rows.columns)),
            signature=signature.to_dict() if signature else None,
            max_rows=max_rows,
            entities=tuple((entities or {}).items()),
        )

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """Return the columns of a model that takes rows of them.

        Raises:
            BadRequest: It takes none.
        """
        if self.inputs is None:
            raise BadRequest(422, f"Version {self.version} answers /invocations only: {self.reason}.")
        return tuple(Column(*one) for one in self.inputs)

    @functools.cached_property
    def many_rows(self) -> ManyRows | None:
        """Return what reads rows in a usual form; `None` where they go through MLflow's parser."""
        return ManyRows(self.row_schema) if self.quick or self.direct else None

    @functools.cached_property
    def row_schema(self) -> RowSchema:
        """Return the checks of a row."""
        return RowSchema(self.columns, self.single_precision)


@dataclass(frozen=True)
class Rows:
    """The rows of a body, in the one of three shapes in which they are answered."""

    matrix: np.ndarray | None = None
    """Rows of a model with a quick way in."""
    records: list[dict[str, Any]] | None = None
    """Rows that lack features."""
    table: Any = None
    """What MLflow's parser makes of the body: a frame, an array or several."""
    typed: bool = False
    """Whether the table is as the model gets it, and checked."""
    params: dict[str, Any] | None = None
    """MLflow's, beside a table."""
    bare: bool = False
    """Whether MLflow answers these rows without a `predictions` around."""
    request: dict[str, Any] = field(default_factory=dict)
    """What an inference request wants of its answer: `id`, `parameters` and `outputs`."""
