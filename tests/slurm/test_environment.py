"""A process that srun started knows which one it is; a process in a batch script is alone."""

from __future__ import annotations

from flambeau.launch.slurm import environment_of_slurm, first_host, tasks_per_node

TASK = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
    "SLURM_STEP_NODELIST": "localhost,other",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_task_of_several_gets_what_torchrun_would_have_set() -> None:
    """Four and two processes on two nodes."""
    assert environment_of_slurm(TASK) == {
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "21138",
    }


def test_an_address_that_is_given_is_taken() -> None:
    given = environment_of_slurm({**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "4000")


def test_steps_and_jobs_that_share_a_node_meet_at_ports_of_their_own() -> None:
    ports = {
        environment_of_slurm({**TASK, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})["MASTER_PORT"]
        for job in range(1000, 1020)
        for step in range(5)
    }
    assert len(ports) == 100


def test_a_process_that_is_no_task_of_several_is_alone() -> None:
    """In a batch script Slurm says SLURM_PROCID=0 and SLURM_NTASKS=8: it is not the first of eight processes."""
    assert environment_of_slurm({}) == {}
    assert environment_of_slurm({"SLURM_JOB_ID": "71", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == {}
    assert environment_of_slurm({**TASK, "SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_what_a_launcher_has_set_counts() -> None:
    """torchrun in a step."""
    assert environment_of_slurm({**TASK, "RANK": "0", "WORLD_SIZE": "2"}) == {}


def test_lists_of_slurm_are_read() -> None:
    """Its manual's abbreviations."""
    assert tasks_per_node("2(x3),1,4(x2)") == [2, 2, 2, 1, 4, 4]
    assert tasks_per_node("8") == [8]
    hosts = {"n1": "n1", "n[2-9]": "n2", "a[07,09-12]b,c": "a07b", "r[1-2]n[03-04]-ib,x": "r1n03-ib", "x,y[1-2]": "x"}
    assert {text: first_host(text) for text in hosts} == hosts
