"""Small data sets that come with the package."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from treepie.autodiff import Tensor, tensor

Split = tuple[Tensor, Tensor]


def digits() -> tuple[Split, Split]:
    """Return handwritten digits, 8 by 8 pixels: ((x_train, y_train), (x_test, y_test)).

    x: (1437, 64) and (360, 64) float32 in [0, 1].  y: int32 in 0..9.  Every fifth image, from
    the first on, is a test image; the same thirteen people wrote both parts.

    Source: Optical Recognition of Handwritten Digits, its test part, E. Alpaydin and C. Kaynak,
    1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    with (files(__package__) / "files" / "digits.npz").open("rb") as file, np.load(file) as stored:
        x, y = stored["images"].astype(np.float32) / 16, stored["labels"].astype(np.int32)
    test = np.arange(len(y)) % 5 == 0
    return (tensor(x[~test]), tensor(y[~test])), (tensor(x[test]), tensor(y[test]))
