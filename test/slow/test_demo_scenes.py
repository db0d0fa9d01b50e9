"""Which layouts and tasks a demo shows."""

import pytest

from vla_policy_node.demo.scenes import choose_scenes
from vla_policy_node.world.layouts import HELD_OUT_SEED

MILK = 'pick up the milk and place it in the basket'


def test_tasks_take_turns_each_time_in_another_layout():
    scenes = choose_scenes('libero_object', 'shuffled', 5, (3, 4), '')
    assert [scene.task_id for scene in scenes] == [3, 4, 3, 4, 3]
    layouts = [scene.initial_state - HELD_OUT_SEED for scene in scenes]
    assert layouts == [0, 0, 1, 1, 2]


def test_an_instruction_chooses_its_task():
    scenes = choose_scenes('libero_object', 'standard', 2, (0,), ' Pick up the MILK and place it'
                           ' in the basket. ')
    assert {scene.task_id for scene in scenes} == {7}
    assert [scene.initial_state for scene in scenes] == [0, 1]


def test_an_instruction_nobody_can_judge_is_refused_with_those_that_can():
    with pytest.raises(ValueError, match=MILK):
        choose_scenes('libero_object', 'shuffled', 1, (), 'make coffee')
