"""The training loop and what it is made of."""

from flambeau.optim import defer_dynamo_import
from flambeau.training.callback import Callback
from flambeau.training.trainer import Trainer

# Before anybody makes an optimizer: the first one would import torch's compiler, which costs a second.
defer_dynamo_import()

__all__ = ["Callback", "Trainer"]
