"""The BentoML service that an engineer writes by hand for the same model: one API, one pydantic body, one worker.

It runs in an environment of its own (`make bench` installs it), which holds nothing of ours.
"""

import json
import os

import bentoml
import numpy as np
import xgboost
from pydantic import BaseModel, ConfigDict, create_model

types = {"integer": int, "number": float}
schema = json.loads(os.environ["PEER_SCHEMA"])
fields = {
    name: (types[field["type"]], ...) if "type" in field else (types[field["anyOf"][0]["type"]] | None, None)
    for name, field in schema["properties"].items()
}
Row = create_model("Row", __config__=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False), **fields)


class Answer(BaseModel):
    prediction: float
    model: str
    version: str


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Predictor:
    def __init__(self) -> None:
        self.booster = xgboost.Booster(model_file=os.environ["PEER_MODEL"])
        self.booster.set_param({"nthread": 1})

    @bentoml.api
    async def predict(self, row: Row, /) -> Answer:
        values = np.array([list(row.__dict__.values())], dtype=np.float64)
        prediction = self.booster.inplace_predict(values, validate_features=False)[0]
        return Answer(prediction=float(prediction), model="peer", version="1")
