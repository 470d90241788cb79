"""A database of MLflow's as an older version left it, made with MLflow's own migrations."""

import sqlalchemy
from alembic import command
from mlflow.store.db import utils
from shopfloor.stack import versions

BEFORE = versions.release().schemas["mlflow"][1]
"""The schema before the last migration."""


def make_older(file):
    """Take the last migration back; where there is no database, make one."""
    url = f"sqlite:///{file}"
    if not file.exists():
        engine = sqlalchemy.create_engine(url)
        utils._initialize_tables(engine)
        engine.dispose()
    command.downgrade(utils._get_alembic_config(url), BEFORE)
