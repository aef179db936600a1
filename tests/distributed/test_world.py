"""Where a process stands among others, from what torchrun and Slurm put into the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from omniavatar.distributed.world import (
    ALONE,
    World,
    common,
    first_count,
    first_host,
    joined,
    place,
    tells_for_all,
    word_file,
)
from omniavatar.errors import InputError
from tests.distributed.conftest import free_port

TORCHRUN = {
    "WORLD_SIZE": "16",
    "RANK": "11",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "4000",
    "LOCAL_WORLD_SIZE": "8",
}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "81234",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "gpu[03-04]",
}
SRUN = {
    **BATCH_SCRIPT,
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_ID": "5",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
CPU = torch.device("cpu")
SLURM_PORT = 29500 + (31 * 81234 + 5) % 1000


def test_nobody_around() -> None:
    assert place({}) == ALONE
    assert ALONE.is_main


def test_started_by_torchrun() -> None:
    world = place(TORCHRUN)
    assert world == World(rank=11, size=16, local_rank=3, local_size=8, address="10.0.0.7", port=4000)
    assert not world.is_main


def test_torchrun_with_one_rank_is_alone() -> None:
    assert place({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) == ALONE


def test_started_by_srun() -> None:
    assert place(SRUN) == World(rank=11, size=16, local_rank=3, local_size=8, address="gpu03", port=SLURM_PORT)


def test_a_task_that_sees_one_gpu_has_number_0() -> None:
    assert place({**SRUN, "CUDA_VISIBLE_DEVICES": "5"}).local_rank == 0
    assert place({**SRUN, "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}).local_rank == 3
    assert place({**SRUN, "CUDA_VISIBLE_DEVICES": ""}).local_rank == 3


def test_two_steps_of_a_slurm_job_meet_at_two_places() -> None:
    assert place(SRUN).port != place({**SRUN, "SLURM_STEP_ID": "6"}).port


@pytest.mark.parametrize(("tasks", "count"), [("8(x2)", 8), ("4", 4), ("8(x2),4", 8), ("2,1", 2)])
def test_tasks_of_the_first_host(tasks: str, count: int) -> None:
    assert first_count(tasks) == count


def test_half_of_torchruns_environment_is_no_place() -> None:
    assert place({"WORLD_SIZE": "2"}) == ALONE
    assert place({"WORLD_SIZE": ""}) == ALONE


def test_one_process_of_all_tells_what_every_rank_finds(tmp_path: Path) -> None:
    assert tells_for_all({})
    assert tells_for_all({**TORCHRUN, "RANK": "0"})
    assert not tells_for_all(TORCHRUN)
    launched = {"TORCHELASTIC_RUN_ID": "omni-run-1", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    assert not tells_for_all({**TORCHRUN, "RANK": "0", **launched})


def test_all_ranks_of_a_slurm_job_meet_at_one_place() -> None:
    first, last = (place({**SRUN, "SLURM_PROCID": rank}) for rank in ("0", "15"))
    assert (first.address, first.port) == (last.address, last.port)


def test_a_batch_script_that_owns_several_tasks_is_alone() -> None:
    assert place(BATCH_SCRIPT) == ALONE


def test_one_task_of_srun_is_alone() -> None:
    assert place({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) == ALONE


def test_ranks_that_an_srun_task_has_started_belong_together() -> None:
    assert place({**SRUN, **TORCHRUN}).address == "10.0.0.7"


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("gpu7", "gpu7"),
        ("gpu-a,gpu-b", "gpu-a"),
        ("gpu[03-05,9],x", "gpu03"),
        ("gpu[9,03-05]", "gpu9"),
        ("rack2-gpu[12,14].cluster,x", "rack2-gpu12.cluster"),
        ("r[1-2]n[3-4]", "r1n3"),
    ],
)
def test_first_host_of_a_node_list(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


def test_a_node_list_that_is_none() -> None:
    with pytest.raises(InputError, match="cannot read the Slurm node list ''"):
        first_host("")


def test_only_our_launcher_wants_a_word() -> None:
    file = {"TORCHELASTIC_ERROR_FILE": "/tmp/run/attempt_0/1/error.json"}
    assert word_file({}) is None
    assert word_file({**file, "TORCHELASTIC_RUN_ID": "none"}) is None
    ours = word_file({**file, "TORCHELASTIC_RUN_ID": "omni-run-7"})
    assert ours == Path("/tmp/run/attempt_0/1/word.json")


def test_alone_there_is_no_process_group() -> None:
    with joined(ALONE, CPU, 1.0):
        assert not distributed.is_initialized()


def test_ranks_that_do_not_come_are_an_error() -> None:
    port = free_port()
    message = f"not all 2 ranks have met at 127.0.0.1:{port} within 0.5 s .*; start them all"
    with pytest.raises(InputError, match=message), joined(World(size=2, port=port), CPU, 0.5):
        pytest.fail("one rank is not two")


@pytest.mark.slow
def test_one_process_needs_no_process_group_nor_libraries_for_many(tmp_path: Path) -> None:
    """In a fresh process, the whole command."""
    script = """
import sys
from omniavatar.cli import run_cli
code = run_cli(["run", "--device", "cpu", "--quiet", "--size", "32x32", "--seconds", "0.24", "--prompt", "a face",
                "--schedule.steps", "1", "-o", sys.argv[1]])
from torch import distributed
print(code, distributed.is_initialized(), sorted({"xfuser", "yunchang"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "talk.mp4")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 False []", done.stderr


def test_alone_everything_is_common() -> None:
    assert common([2, 0], ALONE) == [2, 0]
