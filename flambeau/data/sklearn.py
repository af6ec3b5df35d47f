"""scikit-learn's bundled tables: wine, breast cancer and iris to be classified, diabetes to be predicted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.sklearn_files import read_sklearn_file
from flambeau.data.splits import split
from flambeau.data.transforms import standardize_by
from flambeau.registry import register

_CLASSES = {"wine": "wine_data.csv", "breast_cancer": "breast_cancer.csv", "iris": "iris.csv"}


@register.data("sklearn")
class SklearnTable(DataModule):
    """A small table of real measurements, bundled with scikit-learn.

    | dataset         | samples | features | target                                              |
    |-----------------|---------|----------|-----------------------------------------------------|
    | `wine`          | 178     | 13       | 3 cultivars (Forina et al., UCI, 1991)              |
    | `breast_cancer` | 569     | 30       | 0 malignant, 1 benign (Wolberg et al., UCI, 1995)   |
    | `iris`          | 150     | 4        | 3 species (Fisher, 1936)                            |
    | `diabetes`      | 442     | 10       | progression after a year (Efron et al., 2004)       |

    Args:
        dataset: which of them.
        val_fraction: share of the rows that is held out for validation, a function of the seed; the same share of
            each class, where there are classes.
        test_fraction: likewise for the test.
        seed: what the split is a function of.

    Inputs are float32 (num_features,) as measured; each batch is standardised with the mean and standard deviation of
    the training rows. Classes are int64, numbers to be predicted float32 (1,) in their own unit.
    """

    num_features: int
    input_shape: tuple[int]
    num_classes: int
    """Where there are classes."""
    target_mean: float
    """Of the training rows, where numbers are predicted: for a model's `output_mean`."""
    target_std: float
    """Likewise, for a model's `output_scale` and the criterion's `scale`."""

    def __init__(
        self,
        dataset: Literal["wine", "breast_cancer", "iris", "diabetes"],
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
        seed: int = 0,
    ) -> None:
        inputs, targets = _read(dataset)
        self.num_features = inputs.shape[1]
        self.input_shape = (self.num_features,)
        are_classes = targets.dtype == np.int64
        train, val, test = split(
            len(inputs), (val_fraction, test_fraction), seed, labels=targets if are_classes else None
        )
        if are_classes:
            self.num_classes = int(targets.max()) + 1
        else:
            self.target_mean, self.target_std = float(targets[train].mean()), float(targets[train].std())
        self.batch_transform = standardize_by(inputs[train])
        data = ArrayDataset(inputs.astype(np.float32), targets if are_classes else targets.astype(np.float32))
        self.train = data.subset(train)
        self.val = data.subset(val) if len(val) else None
        self.test = data.subset(test) if len(test) else None


def _read(dataset: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
    """All rows, (N, F), and their classes, (N,) int64, or numbers, (N, 1) float64."""
    if dataset == "diabetes":
        inputs = _numbers(read_sklearn_file("diabetes_data_raw.csv.gz", "the table"), " ")
        return inputs, _numbers(read_sklearn_file("diabetes_target.csv.gz", "the table"), " ")
    _, _, rows = read_sklearn_file(_CLASSES[dataset], "the table").partition("\n")  # sizes and names of the classes
    table = _numbers(rows, ",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def _numbers(text: str, separator: str) -> npt.NDArray[np.float64]:
    return np.array([line.split(separator) for line in text.splitlines() if line], dtype=np.float64)
