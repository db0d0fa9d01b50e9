"""Two systems on one machine do not hear each other."""

import os
import socket
import subprocess
import sys

import pytest

from vla_policy_node.system.domain import free_domain, own_domain

# All look for one from the same place on, and begin when they are told.
ASK = '''
import os
os.getpid = lambda: 40
from vla_policy_node.system.domain import free_domain
print('ready', flush=True)
input()
print(free_domain(), flush=True)
input()
'''
PROCESSES = 6


@pytest.fixture
def ask():
    asked = []

    def start(**environment):
        process = subprocess.Popen(
            [sys.executable, '-c', ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment})
        asked.append(process)
        return process

    yield start
    for process in asked:
        process.kill()
        process.communicate()


def answers(processes):
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    return [int(process.stdout.readline()) for process in processes]


def test_processes_that_ask_at_the_same_moment_get_different_domains(ask, tmp_path):
    """Whatever folder their temporary files are in."""
    folders = [tmp_path / str(index) for index in range(PROCESSES)]
    for folder in folders:
        folder.mkdir()
    domains = [*answers([ask(TMPDIR=str(folder)) for folder in folders]), free_domain()]
    assert len(set(domains)) == len(domains)
    assert all(1 <= domain <= 101 for domain in domains)


def test_a_process_keeps_its_domain():
    assert free_domain() == free_domain()


def test_a_domain_is_lent_once_at_a_time():
    with own_domain() as first, own_domain() as second:
        assert len({first, second, free_domain()}) == 3


def test_however_a_process_ends_its_domain_is_free_again(ask, monkeypatch):
    process = ask()
    (domain,) = answers([process])
    monkeypatch.setattr(os, 'getpid', lambda: domain - 1)  # this one is tried first
    with own_domain() as other:
        assert other != domain
    process.kill()
    process.wait()
    with own_domain() as again:
        assert again == domain


def test_a_domain_that_somebody_is_in_who_did_not_ask_is_left_alone():
    with own_domain() as domain:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
        foreign.bind(('127.0.0.1', 7400 + 250 * domain + 11))
        with own_domain() as other:
            assert other != domain
