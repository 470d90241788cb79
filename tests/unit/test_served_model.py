"""A version that cannot answer rows fails by itself, and not by its clients."""

import pytest
from shopfloor.serving.model.loading import ServedModel, Unanswerable


def test_a_version_without_a_signature_counts_as_failing_where_rows_are_asked():
    parts = dict.fromkeys(ServedModel.__dataclass_fields__)
    served = ServedModel(**{**parts, "name": "toy", "version": "4", "reason": "it has no signature"})
    with pytest.raises(Unanswerable, match="Version 4 answers /invocations only: it has no signature"):
        served.predict(b'{"a": 1}')
