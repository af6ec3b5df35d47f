"""The folder of one run: how it was started, what happened, how to go on. Never imports torch."""

from flambeau.run_folder.folder import RunFolder
from flambeau.run_folder.listing import RunSummary, find_runs
from flambeau.run_folder.masking import mask_command, mask_values
from flambeau.run_folder.metrics_file import MetricsFile, read_metrics
from flambeau.run_folder.status import Best, State, Status

__all__ = [
    "RunFolder",
    "Status",
    "State",
    "Best",
    "MetricsFile",
    "read_metrics",
    "RunSummary",
    "find_runs",
    "mask_command",
    "mask_values",
]
