"""Where the workplace keeps compiled pipelines, schemas and samples of others: a second judge where they are there."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("SHOPFLOOR_SHARED") or Path(__file__).resolve().parents[2] / "shared")
