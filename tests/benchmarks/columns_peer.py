"""The FastAPI application that an engineer writes by hand for a pipeline of scikit-learn: one route, one body."""

import os

import pandas as pd
import skops.io
from fastapi import FastAPI
from pydantic import ConfigDict, create_model

file = os.environ["PEER_MODEL"]
model = skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))
fields = {name: (str if name.startswith("text") else float, ...) for name in model.feature_names_in_}
Row = create_model("Row", __config__=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False), **fields)
app = FastAPI()


@app.post("/predict")
async def predict(row: Row) -> dict:
    prediction = model.predict_proba(pd.DataFrame([row.__dict__]))[0, 1]
    return {"prediction": float(prediction), "model": "peer", "version": "1"}
