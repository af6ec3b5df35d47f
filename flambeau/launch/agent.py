"""torchrun's agent with Flambeau's manners. The one module of this package that imports torch at the top."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from flambeau.errors import EXIT_PREEMPTED
from flambeau.launch.network import LOOPBACK, address_towards, is_own_address, lasting_port
from flambeau.launch.outcome import Outcomes
from flambeau.launch.plan import Plan

PORT = "flambeau/master-port"

EXIT_BARRIER = 60.0
"""Seconds that an agent whose workers are done waits for the other machines'; they end together."""

REJOIN = 60.0
"""Seconds in which the machine that makes the others start again has to show up."""

PATIENCE = 600.0
"""Seconds that a machine waits for machine 0 to be there."""

READ_TIMEOUT = 30
"""Seconds without an answer from the store of machine 0 after which a machine takes itself for cut off."""

MEETING = {"last_call_timeout": 5, "keep_alive_interval": 3, "keep_alive_max_attempt": 3}
"""Seconds, with a changing number of machines: how long to wait for more than the least, and how soon a machine that
gives no sign of life counts as lost (9 s)."""


class NoRestartError(Exception):
    """Starting the workers again would be of no use."""


class Agent(LocalElasticAgent):
    """Starts the workers of this machine, and starts them again.

    Args:
        may_restart: asked before that; `NoRestartError` ends the run instead.
        on_restart: told the number of the restart; None where only the machines change, which does not count.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        outcomes: Outcomes,
        variables: Mapping[str, str],
        *,
        may_restart: Callable[[], bool],
        on_restart: Callable[[int | None], None],
    ) -> None:
        super().__init__(spec, _Logs(outcomes, variables), exit_barrier_timeout=EXIT_BARRIER)
        self._outcomes = outcomes
        self._may_restart, self._on_restart = may_restart, on_restart
        self._left_to_restart: float | None = None
        self.exit_codes: dict[int, int] = {}
        """Of the workers that failed last, by rank."""

    @property
    def workers(self) -> dict[int, int]:
        """Process numbers of the workers by rank; empty before they are started."""
        workers = self.get_worker_group().workers
        return {worker.global_rank: worker.id for worker in workers if worker.id is not None}

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        group: Any = worker_group  # torch declares what it fills in as None
        if not group.spec.rdzv_handler.use_agent_store:
            # Rank 0 opens the port seconds later, when one that torch found may be taken by somebody's connection.
            if group.group_rank == 0:
                group.store.set(PORT, str(lasting_port()))
            group.master_port = int(group.store.get(PORT))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        self.exit_codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        if result.state == WorkerState.FAILED and self._machines_are_changing():
            return RunResult(state=WorkerState.HEALTHY)  # the agent looks whether a machine waits to join
        return result

    def _machines_are_changing(self) -> bool:
        """Whether the workers left for another machine's agent to start all again: that is no failure."""
        if not self.exit_codes or any(code != EXIT_PREEMPTED for code in self.exit_codes.values()):
            return False
        self._left_to_restart = self._left_to_restart or time.monotonic()
        return time.monotonic() - self._left_to_restart < REJOIN

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if not self._may_restart():
            raise NoRestartError
        if worker_group.state == WorkerState.HEALTHY:
            self._outcomes.announce_restart()
            self._on_restart(None)
        else:
            self._on_restart(worker_group.spec.max_restarts - self._remaining_restarts)
        self._left_to_restart = None
        super()._restart_workers(worker_group)


class _Logs(DefaultLogsSpecs):
    """Where workers leave errors, and what they find in their environment; their output they sort themselves."""

    def __init__(self, outcomes: Outcomes, variables: Mapping[str, str]) -> None:
        super().__init__(log_dir=str(outcomes.folder))
        self._outcomes, self._variables = outcomes, variables

    def reify(self, envs: dict[int, dict[str, str]]) -> Any:
        self._outcomes.clear()
        for variables in envs.values():
            variables.update(self._variables)
        return super().reify(envs)


def make_agent(
    plan: Plan,
    command: list[str],
    outcomes: Outcomes,
    variables: Mapping[str, str],
    *,
    may_restart: Callable[[], bool],
    on_restart: Callable[[int | None], None],
) -> Agent:
    """The agent of this machine; `run` starts the workers and returns when they are done."""
    spec = WorkerSpec(
        role="flambeau",
        local_world_size=plan.processes,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=_meet(plan),
        max_restarts=plan.max_restarts,
        monitor_interval=0.1,
        master_addr=plan.master[0] if plan.master else LOOPBACK,
    )
    return Agent(spec, outcomes, variables, may_restart=may_restart, on_restart=on_restart)


def _meet(plan: Plan) -> RendezvousHandler:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return get_rendezvous_handler(_meeting(plan))
        except RendezvousConnectionError:  # machine 0 may come later than this one
            if time.monotonic() > deadline:
                raise


def _meeting(plan: Plan) -> RendezvousParameters:
    """How the agents find each other."""
    if plan.master is None:  # one machine: any free port, found without a gap in which another takes it
        return RendezvousParameters("c10d", f"{LOOPBACK}:0", str(uuid.uuid4()), 1, 1, local_addr=LOOPBACK, is_host=True)
    address, port = plan.master
    endpoint = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    is_host = plan.node_rank == 0 if plan.node_rank is not None else is_own_address(address)
    # Ranks follow the order of these names: rank 0 is on machine 0, whose address all know.
    number = f"{plan.node_rank:06d}" if plan.node_rank is not None else address_towards(address)
    name = "machine-0" if is_host else f"machine-1-{number}"
    return RendezvousParameters(
        "c10d",
        endpoint,
        "flambeau",
        *plan.nodes,
        local_addr=name,
        is_host=is_host,
        read_timeout=READ_TIMEOUT,
        **(MEETING if plan.is_elastic else {}),
    )


def run_agent(agent: Agent) -> None:
    """Run the workers to their end, and leave the meeting."""
    cut_off = False
    try:
        agent.run()
    except RendezvousConnectionError:  # whom to tell cannot be reached
        cut_off = True
        raise
    finally:
        if not cut_off:
            agent.get_worker_group().spec.rdzv_handler.shutdown()
