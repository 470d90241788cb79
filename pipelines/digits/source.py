"""The pictures of the use case, made byte for byte from the digits in scikit-learn's wheel.

`python -m pipelines.digits.source OUT` is the command of the DVC stage. Each picture is a PNG file of 8 x 8 shades of
grey; a table names them, with the digit that somebody wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path


def make_pictures(out: Path, every: int = 1) -> None:
    """Write `pictures/<number>.png` and `digits.parquet` into `out`.

    Args:
        out: Directory; made where it is not there.
        every: Take one digit in so many.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    names, numbers = [], range(0, len(digits.target), every)
    for number in numbers:
        shades = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
        names.append(f"pictures/{number:04}.png")
        # Uncompressed, so that the bytes are those of any version of zlib.
        Image.fromarray(shades).save(out / names[-1], compress_level=0)
    table = pa.table({"picture": names, "digit": [int(digits.target[number]) for number in numbers]})
    pq.write_table(table, out / "digits.parquet", compression="zstd", store_schema=False)


if __name__ == "__main__":
    make_pictures(Path(sys.argv[1]))
