"""Ctrl-C ends `vla` with one line and exit code 130, whenever it comes and however often."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from vla_policy_node.common.worker_pool import interrupts_blocked, worker_pool

HEAD = '''
import os, signal, sys, threading, time
from vla_policy_node.cli import interrupts
def press():
    os.kill(os.getpid(), signal.SIGINT)
'''


def run(body, **environment):
    """Run statements as the work of a command."""
    code = HEAD + 'with interrupts.handled():\n' + textwrap.indent(textwrap.dedent(body), '    ')
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=60, check=False, env={**os.environ, **environment})


ONCE = 'press()'
SWALLOWED = '''
try:
    press()
except BaseException:
    pass
time.sleep(30)
'''
RENAMED = '''
try:
    press()
except KeyboardInterrupt:
    raise ImportError('numpy could not be imported')
'''
IN_A_DESTRUCTOR = '''
class Thing:
    def __del__(self):
        press()
        for _ in range(1000): pass
thing = Thing()
del thing
time.sleep(30)
'''
TWICE = '''
try:
    press()
finally:
    press()
    time.sleep(30)
'''
WHILE_ENDING = '''
import atexit
atexit.register(press)
press()
'''
IN_A_THREAD = '''
def spin():
    while not interrupts.came():
        time.sleep(0.01)
    raise RuntimeError('the context is gone')
thread = threading.Thread(target=spin)
thread.start()
try:
    press()
finally:
    thread.join()
'''


@pytest.mark.parametrize('body', [
    ONCE, SWALLOWED, RENAMED, IN_A_DESTRUCTOR, TWICE, WHILE_ENDING, IN_A_THREAD],
    ids=['once', 'swallowed', 'renamed', 'in a destructor', 'twice', 'while ending', 'thread'])
def test_it_is_one_line_and_exit_code_130(body):
    done = run(body)
    assert (done.returncode, done.stderr, done.stdout) == (130, 'Interrupted.\n', '')


def test_other_errors_stay_as_they_are():
    assert run('raise SystemExit(7)').returncode == 7
    done = run('raise RuntimeError("mine")')
    assert done.returncode == 1 and 'RuntimeError: mine' in done.stderr


def test_a_command_in_the_background_of_a_script_ignores_it():
    code = ('import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n'
            + HEAD + 'with interrupts.handled():\n    press()\n    print("done")')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, 'done\n')


def test_what_comes_while_processes_start_is_delivered_afterwards():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append('handled'))
    try:
        with interrupts_blocked():
            signal.raise_signal(signal.SIGINT)
            assert not seen
        assert seen == ['handled']
    finally:
        signal.signal(signal.SIGINT, before)


def note_and_wait(folder):
    unfinished = folder / 'unfinished'
    unfinished.touch()
    try:
        signal.pause()
    finally:
        unfinished.unlink()


def test_a_worker_puts_its_files_in_order_when_the_parent_stops(tmp_path):
    with pytest.raises(KeyboardInterrupt), worker_pool(1, 'fork') as submit:
        future = submit(note_and_wait, tmp_path)
        while not (tmp_path / 'unfinished').exists():
            assert not future.done(), future.exception()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_workers_never_see_it():
    with worker_pool(1, 'fork') as submit:
        assert submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result() == {signal.SIGINT}
        assert submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_a_first_process_never_sees_it_either():
    code = ('import multiprocessing, signal\n'
            'from vla_policy_node.common.worker_pool import interrupts_blocked\n'
            'if __name__ == "__main__":\n'
            '    with interrupts_blocked():\n'
            '        process = multiprocessing.get_context("spawn").Process(target=print)\n'
            '        process.start()\n'
            '        blocked = open(f"/proc/{process.pid}/status").read()\n'
            '    process.join()\n'
            '    mask = int(blocked.split("SigBlk:")[1].split()[0], 16)\n'
            '    assert mask >> signal.SIGINT - 1 & 1\n')
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
