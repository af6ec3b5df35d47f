"""Looking into training code: gradients, times, and what several processes say. For a trainer's code and notebooks."""

from flambeau.insight.gradients import collect_gradients
from flambeau.insight.ranks import in_rank_order, is_main, main_only, print_in_order
from flambeau.insight.summary import model_summary
from flambeau.insight.timer import Timer, timer

__all__ = [
    "Timer",
    "collect_gradients",
    "in_rank_order",
    "is_main",
    "main_only",
    "model_summary",
    "print_in_order",
    "timer",
]
