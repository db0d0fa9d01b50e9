"""Layering: the control layer needs neither ROS nor torch; its codes are those of the messages."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vla_policy_node.control as control
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.session import OUTCOME_TEXTS, Outcome

ROOT = Path(__file__).parents[2]
MODULES = [f'{control.__name__}.{m.name}' for m in pkgutil.iter_modules(control.__path__)]


def test_control_imports_neither_ros_nor_torch():
    script = (
        f'import importlib, sys; [importlib.import_module(name) for name in {MODULES}]; '
        'print(*sorted({name.partition(".")[0] for name in sys.modules}))'
    )
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert 'numpy' in loaded
    assert not loaded & {'rclpy', 'torch', 'vla_msgs', 'sensor_msgs', 'mujoco', 'cv2'}


def test_control_never_reads_a_clock():
    for path in (ROOT / 'vla_policy_node' / 'control').glob('*.py'):
        assert not re.search(r'^\s*(import|from) (time|datetime)\b', path.read_text(), re.M), path


def test_hold_codes_are_those_of_the_message():
    text = (ROOT / 'vla_msgs' / 'msg' / 'HoldReason.msg').read_text()
    codes = {name: int(code) for name, code in re.findall(r'^uint8 (\w+)=(\d+)', text, re.M)}
    assert {reason.name: reason.value for reason in HoldReason} == codes


def test_outcome_codes_are_those_of_the_action_and_each_has_a_text():
    text = (ROOT / 'vla_msgs' / 'action' / 'ExecuteInstruction.action').read_text()
    codes = {name: int(code) for name, code in re.findall(r'^uint8 (\w+)=(\d+)', text, re.M)}
    assert {outcome.name: outcome.value for outcome in Outcome} == codes
    assert set(OUTCOME_TEXTS) == set(Outcome)


@pytest.mark.parametrize('code', HoldReason)
def test_every_hold_is_one_sentence(code):
    text = Hold(code, 'wrist').text
    assert text.endswith('.') and '\n' not in text
    if code.name.startswith('INPUT') or code in (HoldReason.CAMERA_SPREAD, HoldReason.CLOCK_JUMP):
        assert 'wrist' in text
        assert '{' not in Hold(code).text


@pytest.mark.parametrize(('code', 'parameters'), [
    (HoldReason.INPUT_FROZEN, ['freeze_timeout_s']),
    (HoldReason.MOTION_MISMATCH, ['max_tracking_error_m', 'tracking_gain'])])
def test_a_hold_that_a_healthy_robot_may_meet_names_the_parameters_that_avoid_it(code, parameters):
    for name in parameters:
        assert name in Hold(code, 'wrist').text
