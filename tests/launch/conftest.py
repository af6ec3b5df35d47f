"""A project whose runs can be made to go wrong, on one rank of several."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.projects import CONFIG, Project

TROUBLE = '''

import signal
import sys

from flambeau.errors import UsageError


@register.callback("trouble")
class Trouble(Callback):
    """Does something to one rank, after a step."""

    def __init__(self, what: str = "", rank: int = 1, at: int = 5, pace: float = 0.0) -> None:
        self.what, self.rank, self.at, self.pace = what, rank, at, pace

    def on_fit_start(self, trainer):
        print(f"hello of rank {trainer.world.rank}", flush=True)
        os.write(2, f"native hello of rank {trainer.world.rank}\\n".encode())

    def on_step_end(self, trainer):
        time.sleep(self.pace)
        if trainer.world.rank != self.rank or trainer.state.step != self.at:
            return
        if self.what == "raise":
            raise ValueError("boom")
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "kill once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.what == "exit":
            os._exit(0)
        if self.what == "wrong":
            raise UsageError("the data is not what it should be", remedy="fetch it again")


@register.model("picky")
class Picky(DropNet):
    """Cannot be built: on all ranks alike, or on one alone."""

    def __init__(self, alike: bool = True) -> None:
        super().__init__()
        print("thinking about it")
        if alike:
            raise UsageError("no such weights", remedy="name others")
        if os.environ.get("RANK") == "1":
            raise RuntimeError("only here")
'''


@pytest.fixture
def project(tmp_path: Path) -> Project:
    config = CONFIG.replace("beacon: {}", "beacon: {}, trouble: {}")
    return Project.write(tmp_path / "project", parts=TROUBLE, config=config)
