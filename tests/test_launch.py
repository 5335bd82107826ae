"""What a launcher set up, and what does not go with several processes."""

from __future__ import annotations

from typing import Any

import pytest

from resd.config import load_config
from resd.errors import UserError
from resd.launch import launched, process_number
from resd.loop.setup import check_processes

TORCHRUN = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "here",
    "MASTER_PORT": "1",
}


def test_how_many_processes_there_are() -> None:
    assert (launched({}), process_number({})) == (1, 0)
    assert (launched(TORCHRUN), process_number(TORCHRUN)) == (4, 3)
    assert process_number({"RANK": "3"}) == 0  # a scheduler's own variable


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}, "accelerate launch"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "4", "RANK": "1"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_a_launcher_that_set_up_something_else(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        launched(environment)


@pytest.mark.parametrize(
    ("settings", "number", "said"),
    [
        ([], 1, "with several processes"),
        ([("method.teacher.kind", "live")], 2, "no model of its own"),
        ([("model.lora.rank", "4")], 2, "no model of its own"),
    ],
)
def test_a_teacher_that_cannot_stand_in_host_memory(
    settings: list[tuple[str, Any]], number: int, said: str
) -> None:
    offload = [("task", "lab"), ("method.teacher.offload", "true")]
    check_processes(load_config(None, offload), 2)
    with pytest.raises(UserError, match=said):
        check_processes(load_config(None, [*offload, *settings]), number)


def test_an_optimiser_that_works_in_one_process_only() -> None:
    config = load_config(None, [("task", "lab"), ("train.optimizer", "adamw_stochastic")])
    check_processes(config, 1)
    with pytest.raises(UserError, match="use adamw"):
        check_processes(config, 2)
