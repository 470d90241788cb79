"""A text has no other values than the training set where the use case says so, or where the model fails on others."""

import pandas as pd
from shopfloor.records import FeatureSet
from shopfloor.registry.register import _closed, _described
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

FRAME = pd.DataFrame({"plan": ["basic", "pro"] * 5, "city": ["Rom", "Wien"] * 5, "tier": ["gold", "tin"] * 5})
RECORD = FeatureSet(
    feature_service="table rows",
    features=dict.fromkeys(FRAME, "str"),
    optional=[],
    values={name: sorted(set(FRAME[name])) for name in FRAME},
    closed=["tier"],
    target="y",
    entities=[],
    rows={},
)


def test_a_model_that_fails_on_another_value_closes_the_text():
    strict, lenient = OneHotEncoder(), OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((strict, ["plan"]), (lenient, ["city", "tier"]))
    model = make_pipeline(columns, LogisticRegression()).fit(FRAME, [0, 1] * 5)
    closed = _closed(RECORD, model.predict, FRAME)
    assert closed == ["tier", "plan"]
    described = _described(RECORD, closed)
    assert {name: one.get("closed", False) for name, one in described.items()} == {
        "plan": True,
        "city": False,
        "tier": True,
    }
