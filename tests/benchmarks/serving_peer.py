"""The FastAPI application that an engineer writes by hand for the same model: one route, one pydantic body."""

import json
import os

import numpy as np
import xgboost
from fastapi import FastAPI
from pydantic import ConfigDict, create_model

booster = xgboost.Booster(model_file=os.environ["PEER_MODEL"])
booster.set_param({"nthread": 1})
types = {"integer": int, "number": float}
schema = json.loads(os.environ["PEER_SCHEMA"])
fields = {
    name: (types[field["type"]], ...) if "type" in field else (types[field["anyOf"][0]["type"]] | None, None)
    for name, field in schema["properties"].items()
}
Row = create_model("Row", __config__=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False), **fields)
app = FastAPI()


@app.post("/predict")
async def predict(row: Row) -> dict:
    values = np.array([list(row.__dict__.values())], dtype=np.float64)
    prediction = booster.inplace_predict(values, validate_features=False)[0]
    return {"prediction": float(prediction), "model": "peer", "version": "1"}
