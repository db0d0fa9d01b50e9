"""A node's process ends: whoever asks, whatever hangs, and not before the robot is told.

Regressions pinned: nodes of the launch files drove on when `ros2 launch` was killed; SIGTERM did
not end a node whose callback or worker hung.
"""

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ros_testing  # noqa: F401 - a domain of its own

from vla_policy_node.nodes.ending import EXIT_S
from vla_policy_node.system.processes import SUPERVISOR, leash

TIMEOUT_S = 60.0  # of a busy machine; what is waited for is an event
LAUNCH_PATIENCE_S = 5.0

NODE = '''
import ctypes, threading, time
from rclpy.node import Node
from vla_policy_node.nodes.running import run

def say(text):
    print(text, flush=True)

class Robot(Node):
    def __init__(self):
        super().__init__('robot')
        self.create_timer(0.01, self.once)
        self.told = False

    def once(self):
        if not self.told:
            self.told = True
            say('up')
            self.work()

    def work(self):
        pass

    def stand_still(self):
        say('hold')

'''
QUIET = NODE + 'run(Robot); say("in order")'
HUNG_CALLBACK = NODE + '''
Robot.work = lambda self: time.sleep(1e6)
run(Robot, exit_s={exit_s})
'''
HUNG_WORKER = NODE + '''
Robot.work = lambda self: threading.Thread(target=time.sleep, args=(1e6,)).start()
run(Robot, exit_s=1.0)
say('in order')
'''
HUNG_HOLD = NODE + '''
def hold_that_keeps_the_interpreter(self):
    say('hold')
    ctypes.PyDLL(None).sleep(1000000)

Robot.stand_still = hold_that_keeps_the_interpreter
run(Robot, exit_s=1.0)
'''
FILES = NODE + '''
def destroy(self):
    say('writing')
    for line in iter(input, 'disk'):
        pass
    say('written')
    Node.destroy_node(self)

Robot.destroy_node = destroy
run(Robot, exit_s=None)
'''
SUPERVISOR_OF = '''
import os, subprocess, sys
from vla_policy_node.system.processes import leash
subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=os.environ | leash()).wait()
'''


@pytest.fixture
def start():
    processes = []

    def start_code(code, *arguments, **options):
        process = subprocess.Popen(
            [sys.executable, '-c', code, *arguments], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        processes.append(process)
        return process

    yield start_code
    for process in processes:
        process.kill()
        process.communicate()


def read_until(process, line):
    for read in process.stdout:
        if read == f'{line}\n':
            return
    pytest.fail(f'The node never said {line!r}: {process.stderr.read()}')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_has_the_robot_stand_still_and_ends_in_order(start, number):
    process = start(QUIET)
    read_until(process, 'up')
    process.send_signal(number)
    out, log = process.communicate(timeout=TIMEOUT_S)
    assert out.splitlines() == ['hold', 'in order']
    assert (process.returncode, log) == (0, '')


@pytest.mark.parametrize('code', [
    pytest.param(HUNG_CALLBACK.format(exit_s=1.0), id='callback'),
    pytest.param(HUNG_WORKER, id='worker'),
    pytest.param(HUNG_HOLD, id='hold'),
])
def test_what_hangs_is_ended_after_the_hold_and_named(start, code):
    process = start(code)
    read_until(process, 'up')
    process.send_signal(signal.SIGTERM)
    out, log = process.communicate(timeout=TIMEOUT_S)
    assert out.startswith('hold\n')
    assert process.returncode == 1
    assert re.search(r'File .* in \w+', log)  # where every thread was


def test_the_process_is_gone_before_launch_loses_its_patience():
    assert EXIT_S + 0.5 < LAUNCH_PATIENCE_S  # 0.5 s for a main thread that keeps the interpreter


def test_a_second_signal_ends_at_once_but_after_the_hold(start):
    process = start(HUNG_CALLBACK.format(exit_s=1e6))
    read_until(process, 'up')
    process.send_signal(signal.SIGTERM)
    read_until(process, 'hold')
    for _ in range(round(TIMEOUT_S / 0.1)):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            pass
    assert process.returncode == 1


def test_files_are_finished_however_often_one_is_asked_to_end(start):
    process = start(FILES)
    read_until(process, 'up')
    process.send_signal(signal.SIGINT)
    read_until(process, 'writing')
    process.send_signal(signal.SIGTERM)
    out, log = process.communicate('disk\n', timeout=TIMEOUT_S)
    assert out == 'written\n', log
    assert process.returncode == 0


def test_nohup_is_respected(start):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(QUIET, preexec_fn=ignore)
    read_until(process, 'up')
    status = Path(f'/proc/{process.pid}/status').read_text(encoding='ascii')
    ignored = int(re.search(r'^SigIgn:\s*(\w+)$', status, re.MULTILINE)[1], 16)
    assert ignored & 1 << signal.SIGHUP - 1


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_node_ends_in_order_when_its_supervisor_dies(start, number):
    supervisor = start(SUPERVISOR_OF, 'import os; print(os.getpid(), flush=True)\n' + QUIET)
    node = os.pidfd_open(int(supervisor.stdout.readline()))
    read_until(supervisor, 'up')
    supervisor.send_signal(number)
    supervisor.wait()
    ended, _, _ = select.select([node], [], [], TIMEOUT_S)  # readable when the process has ended
    os.close(node)
    assert ended
    assert supervisor.stdout.read().splitlines() == ['hold', 'in order']


def test_a_node_does_not_start_when_its_supervisor_is_dead_already(start):
    supervisor = start('')
    supervisor.wait()
    process = start(QUIET, env=os.environ | {SUPERVISOR: str(supervisor.pid)})
    out, log = process.communicate(timeout=TIMEOUT_S)
    assert 'The process that started this node has ended' in log
    assert (process.returncode, out) == (1, '')


def test_a_supervisor_that_is_no_process_is_refused_with_a_sentence(start):
    process = start(QUIET, env=os.environ | {SUPERVISOR: 'launch'})
    _, log = process.communicate(timeout=TIMEOUT_S)
    assert f"{SUPERVISOR} is 'launch'" in log
    assert 'Traceback' not in log


def test_the_leash_is_in_the_hand_of_this_process():
    assert leash() == {SUPERVISOR: str(os.getpid())}
