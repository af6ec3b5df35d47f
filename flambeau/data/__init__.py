"""Datasets and data modules, and how their samples reach the device as batches."""

from flambeau.data.batch import Batch, collate
from flambeau.data.feeding import EvalFeeder, Feeder
from flambeau.data.in_memory import ArrayDataset
from flambeau.data.index_stream import IndexStream
from flambeau.data.module import DataModule
from flambeau.data.padding import Padding
from flambeau.data.splits import split

__all__ = ["ArrayDataset", "Batch", "DataModule", "EvalFeeder", "Feeder", "IndexStream", "Padding", "collate", "split"]
