"""Stands for whatever made a model that you already have: it fits one, and shares no line with the platform.

`python -m pipelines.iris.elsewhere OUT` writes what its makers would hand over: the model, and rows to try it with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def make_model(out: Path) -> None:
    """Write `model.skops`, which tells three irises apart, and `rows.json`, a few flowers, into `out`."""
    import skops.io
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    iris = load_iris(as_frame=True)
    flowers = iris.data.rename(columns=lambda name: name.removesuffix(" (cm)").replace(" ", "_"))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(flowers, iris.target_names[iris.target])
    out.mkdir(parents=True, exist_ok=True)
    skops.io.dump(model, out / "model.skops")
    (out / "rows.json").write_text(json.dumps(flowers[::10].to_dict("records")), encoding="utf-8")


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
