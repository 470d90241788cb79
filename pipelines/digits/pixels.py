"""The first step of the model: numbers of a picture, as the endpoint is sent it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator, TransformerMixin

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class Pixels(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Makes shades of grey, 0 to 1, of pictures in base64, whatever format and size they have."""

    def __init__(self, side: int = 8) -> None:
        """Take the width and height in pixels that each picture gets."""
        self.side = side

    def fit(self, frame: pd.DataFrame, truth: Any = None) -> Pixels:
        """Learn nothing but the number of columns."""
        self.n_features_in_ = frame.shape[1]
        return self

    def transform(self, frame: pd.DataFrame) -> np.ndarray:
        """Return a number a pixel, shape (rows, side * side).

        Raises:
            ValueError: A text is no file of a picture in base64.
        """
        import numpy as np

        return np.stack([self._shades(text) for text in frame["picture"]])

    def _shades(self, text: str) -> np.ndarray:
        import base64
        import io

        import numpy as np
        from PIL import Image

        try:
            with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
                grey = picture.convert("L").resize((self.side, self.side))
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            raise ValueError("picture is no file of a picture in base64") from error
        return np.asarray(grey, dtype=np.float64).ravel() / 255
