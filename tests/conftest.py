"""What all tests share. `tests/` is on the import path, so helpers are had as `from support.projects import ...`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests and the processes that they start compute tiny things, often several at a time on few cores. Read by torch
# when it is imported, so it is set before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis by default fails a test whose examples took long to make: a matter of the machine, not of the code.
settings.register_profile("flambeau", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("flambeau")
