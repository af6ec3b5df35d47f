"""Starting the processes of a run, on one machine or several, and what they owe each other: devices, output, outcome.

torchrun's agent starts and restarts the processes; nothing here schedules any. Only `agent` imports torch.
"""

from flambeau.launch.launcher import launch
from flambeau.launch.plan import Plan, add_device, add_machines, add_processes, plan_of

__all__ = ["Plan", "add_device", "add_machines", "add_processes", "launch", "plan_of"]
