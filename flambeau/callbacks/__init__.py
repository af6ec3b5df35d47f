"""Callbacks that come with Flambeau."""

from flambeau.callbacks.every import Every
from flambeau.callbacks.generated_images import GeneratedImages
from flambeau.callbacks.gradients import Gradients
from flambeau.callbacks.history import History
from flambeau.callbacks.hooks import LambdaCallback
from flambeau.callbacks.milestones import Milestones
from flambeau.callbacks.notices import Mail, Webhook
from flambeau.callbacks.notify import Notify
from flambeau.callbacks.reduce_on_plateau import ReduceOnPlateau
from flambeau.callbacks.sample_images import SampleImages
from flambeau.callbacks.sample_text import SampleText
from flambeau.callbacks.stop_when import StopWhen
from flambeau.callbacks.time_limit import TimeLimit

__all__ = [
    "Every",
    "GeneratedImages",
    "Gradients",
    "History",
    "LambdaCallback",
    "Mail",
    "Milestones",
    "Notify",
    "ReduceOnPlateau",
    "SampleImages",
    "SampleText",
    "StopWhen",
    "TimeLimit",
    "Webhook",
]
