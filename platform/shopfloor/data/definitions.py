"""Feast's registry, read whole by the Feast that is installed: `python -m shopfloor.data.definitions`.

Where the registry is a database, Feast makes the tables that it lacks when it opens it: it has no other migration.
"""

from __future__ import annotations

from pathlib import Path

from shopfloor.data.features import feature_store
from shopfloor.errors import ShopfloorError, first_line
from shopfloor.settings import Settings, load_settings
from shopfloor.storage import is_remote
from shopfloor.use_case import list_use_cases


def read(settings: Settings) -> int:
    """Read the feature views of every use case.

    Args:
        settings: Say where the registry is.

    Returns:
        Number of the views; none where there is no registry yet.

    Raises:
        ShopfloorError: Feast cannot read them.
    """
    place = settings.feature_registry
    if not is_remote(place) and not Path(place).is_file():
        return 0
    try:
        return sum(len(feature_store(settings, name).list_feature_views()) for name in list_use_cases(settings))
    except Exception as error:  # Feast and SQLAlchemy have their own
        raise ShopfloorError(f"Feast cannot read its registry {place}: {first_line(error, 300)}.", "") from error


if __name__ == "__main__":
    read(load_settings())
