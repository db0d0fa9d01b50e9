"""Scenarios for whole processes: signals, clock steps, hangs, floods, storms, rivals."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data

from vla_msgs.msg import EndEffectorCommand, HoldReason
from vla_policy_node.bench.faults import messages
from vla_policy_node.bench.faults.draw import draw_fault
from vla_policy_node.bench.faults.kinds import pick
from vla_policy_node.bench.faults.oracle import judge
from vla_policy_node.bench.faults.records import ServiceAnswer, TimeSpan, Trial, TrialGoal
from vla_policy_node.bench.faults.trial import INSTRUCTION
from vla_policy_node.bench.live.child import start_victim
from vla_policy_node.bench.live.fault_trials import RECEIVE_SLACK_S, RECOVERS_WITHIN_S, START_S
from vla_policy_node.bench.live.process_trials import (
    EXIT_S,
    INFERENCE_TIMEOUT_S,
    Processes,
    Scenario,
    scenario,
)
from vla_policy_node.bench.live.receiver import EVERY_COMMAND, received_s, to_sent
from vla_policy_node.nodes import qos
from vla_policy_node.system.processes import SUPERVISOR

# How long two of a kind may be there before the robot holds: discovery, and a look at the graph.
RIVAL_S = 1.5
# For the client of a goal to be missed, however it ended.
CLIENT_LEASE_S = 25.0
GUARD = 'vla_policy_node.nodes.guard_node'
GUARD_PERIODS = 2.0
FLOOD_MB = 250.0  # which the node may have grown by when 600 MB were thrown at it
STORM_S = 20.0  # for hundreds of requests


# --- signals ---

def _signalled(number: signal.Signals) -> Scenario:
    def run(live: Processes, rng: np.random.Generator) -> None:
        time.sleep(rng.uniform(0.0, 0.2))
        live.expect_exit(number.name, lambda: live.child.signal(number))

    run.__name__ = f'signal_{number.name.lower()}'
    return scenario(run)


for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    _signalled(_number)


@scenario
def signal_stop_and_continue(live: Processes, rng: np.random.Generator) -> None:
    """A process that is stopped for a while has nothing old to say when it goes on."""
    before = live.trial.active[0]
    live.trial.active = [TimeSpan(before.from_s, live.now_s)]
    live.child.signal(signal.SIGSTOP)
    time.sleep(pick(rng, (0.15, 0.5, 2.0)))
    live.child.signal(signal.SIGCONT)
    time.sleep(0.1)
    live.trial.active.append(TimeSpan(live.now_s))
    time.sleep(0.3)


@scenario
def supervisor_dies(live: Processes, rng: np.random.Generator) -> None:
    """What started the node is killed: the node holds and ends."""
    number = pick(rng, (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP))
    parent = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    try:
        live.environment[SUPERVISOR] = str(parent.pid)
        live.start_node()
        live.prepare()

        def kill() -> None:
            parent.send_signal(number)
            parent.wait()

        live.expect_exit('supervisor', kill)
    finally:
        del live.environment[SUPERVISOR]
        parent.kill()
        parent.wait()


# --- the guard ---

def _guarded(number: signal.Signals) -> Scenario:
    def run(live: Processes, rng: np.random.Generator) -> None:
        guarded = Trial(receive_slack_s=RECEIVE_SLACK_S)
        subscription = live.node.create_subscription(
            EndEffectorCommand, 'guarded_command', lambda msg, info: guarded.sent.append(
                to_sent(msg, received_s(info) - live.zero_s)), EVERY_COMMAND)
        guard = start_victim(live.folder / f'guard{live.case}.log', {}, module=GUARD)
        try:
            with guard:
                live.receiver.wait(lambda: any(not s.hold for s in guarded.sent[-9:]), START_S)
                live.starvation.watch(guard.process.pid)
                guarded.active = [TimeSpan(live.now_s)]
                time.sleep(rng.uniform(0.1, 0.4))
                _silence(live, number)
                silent_s = live.now_s
                time.sleep(1.0)
                guarded.active = [TimeSpan(guarded.active[0].from_s, live.now_s)]
                live.starvation.watch(live.child.process.pid)
                if number is signal.SIGSTOP:
                    live.child.signal(signal.SIGCONT)
                    live.trial.active.append(TimeSpan(live.now_s + RECEIVE_SLACK_S))
            periods_s = GUARD_PERIODS / live.parameters.control_rate_hz
            guarded.goals = [TrialGoal(goal.epoch, goal.from_s, silent_s + periods_s)
                             for goal in live.trial.goals]
            guarded.sent = [sent for sent in guarded.sent
                            if sent.at_s <= guarded.active[0].until_s]
            # What passes is the node's own; here it counts that and when it stops.
            guarded.promises = [p.but(gap_periods=GUARD_PERIODS) for p in live.trial.promises]
            guarded.starved = list(live.starvation.samples)
            findings = judge(guarded)
            live.trial.ends += [f'guard: {f.rule}: {f.text}' for f in findings
                                if f.rule in ('stopped', 'no_goal', 'hold_moves')]
            live.trial.silences += [f'guard: {f.text}' for f in findings if f.rule == 'gap']
        finally:
            live.node.destroy_subscription(subscription)

    run.__name__ = f'guard_of_{number.name.lower()}'
    return scenario(run)


def _silence(live: Processes, number: signal.Signals) -> None:
    """Kill or stop the node without a word."""
    live.trial.active = [TimeSpan(live.trial.active[0].from_s, live.now_s)]
    live.may_end = number is signal.SIGKILL
    if live.may_end:
        live.trial.recovers_from_s = None
    live.child.signal(number)
    if live.may_end:
        live.child.wait(EXIT_S)


for _number in (signal.SIGKILL, signal.SIGSTOP):
    _guarded(_number)


# --- the clock of the machine ---

def _clock(kind: str) -> Scenario:
    def run(live: Processes, rng: np.random.Generator) -> None:
        live.disturb(draw_fault(kind, live.case, live.seed, live.now_s + 0.05), {'kind': ''})

    run.__name__ = f'system_{kind}'
    return scenario(run)


for _kind in ('clock_step_node', 'clock_step_everywhere'):
    _clock(_kind)


@scenario
def system_clock_steps_often(live: Processes, rng: np.random.Generator) -> None:
    """A clock that is set to and fro many times a second."""
    for _ in range(30):
        step_s = float(rng.uniform(-60.0, 60.0))
        live.node_clock.set(live.now_s, step_s)
        time.sleep(rng.uniform(0.0, 0.04))
        live.node_clock.set(live.now_s, -step_s)
        time.sleep(rng.uniform(0.0, 0.02))


# --- a policy that does not answer ---

@scenario
def inference_hangs(live: Processes, rng: np.random.Generator) -> None:
    """Held and named; stops are served; the process ends when it is told to."""
    live.child.order(kind='', hang=1000.0)
    late = {HoldReason.INFERENCE_LATE, HoldReason.INFERENCE_FAILED}
    if not live.hears(late, INFERENCE_TIMEOUT_S + 1.0):
        live.trial.stuck.append('a hung inference was not noticed')
    live.stop('estop')
    if rng.random() < 0.5:
        live.stop('deactivate')
    # In order or by force: with a thread that hangs, that it ends is all one can ask.
    live.expect_exit('SIGTERM', lambda: live.child.signal(signal.SIGTERM), codes=(0, 1))


# --- floods and storms ---

@scenario
def flood_of_poses(live: Processes, rng: np.random.Generator) -> None:
    """Ten thousand poses a second."""
    def make() -> bytes:
        position_m, quaternion = live.feeder.pose()
        return messages.pose_bytes(position_m, 0, quaternion=quaternion)

    _beside(live, lambda: live.feeder.flood('ee_pose', make, 10_000.0, 1.0))


@scenario
def flood_of_huge_states(live: Processes, rng: np.random.Generator) -> None:
    """Joint states of four megabytes, as fast as they go: bounded memory, no silence."""
    raw = messages.gripper_bytes((0.0,) * 500_000, 0, ())
    before_mb = _resident_mb(live.child.process.pid)
    _beside(live, lambda: live.feeder.flood('gripper_state', lambda: raw, 50.0, 3.0))
    deadline_s = live.now_s + 2.0  # for what is under way to be read and refused
    while (grown_mb := _resident_mb(live.child.process.pid) - before_mb) > FLOOD_MB:
        if live.now_s > deadline_s:
            live.trial.ends.append(f'the node grew by {grown_mb:.0f} MB')
            break
        time.sleep(0.1)


@scenario
def long_instruction(live: Processes, rng: np.random.Generator) -> None:
    """Megabytes of text while the robot moves: refused at once, and stops are served."""
    text = 'pick ' * int(pick(rng, (200_000, 800_000)))
    _beside(live, lambda: live.begin(text))
    live.stop('cancel')
    live.begin(text)
    live.stop('estop')


@scenario
def parameter_storm(live: Processes, rng: np.random.Generator) -> None:
    """Hundreds of changes of parameters in a row."""
    name = pick(rng, ('ensemble_horizon', 'max_age_s', 'use_sim_time', 'max_linear_velocity_m_s'))
    values = {'ensemble_horizon': (4, 8), 'max_age_s': (0.3, 0.29), 'use_sim_time': (True, False),
              'max_linear_velocity_m_s': (0.1, 0.09)}[name]
    live.trial.promises = [p.but(brakes_hard=True) for p in live.trial.promises]
    asked_s = live.now_s
    futures = []
    for i in range(300):
        futures.append(live.receiver.ask_for_parameters(**{name: values[i % 2]}))
        # More than the middleware keeps of requests would be lost on the way.
        live.receiver.wait(lambda: sum(not f.done() for f in futures) < 8, STORM_S)
        if i == 150:
            live.stop('cancel')
            live.begin()
    live.receiver.wait(lambda: all(future.done() for future in futures), STORM_S)
    answered_s = live.now_s if all(future.done() for future in futures) else None
    live.trial.answers.append(ServiceAnswer('set_parameters', asked_s, answered_s, STORM_S))


@scenario
def lifecycle_storm(live: Processes, rng: np.random.Generator) -> None:
    """Activated and deactivated in a row while it moves."""
    for _ in range(int(rng.integers(2, 5))):
        live.stop('deactivate')
        live.activate()
        live.begin()
        time.sleep(rng.uniform(0.0, 0.3))


# --- rivals ---

@scenario
def second_state_source(live: Processes, rng: np.random.Generator) -> None:
    """Somebody else publishes poses, of another arm."""
    rival = live.node.create_publisher(PoseStamped, 'ee_pose', qos_profile_sensor_data)
    appeared_s = live.now_s
    raw = messages.pose_bytes(np.array([0.05, 0.0, 0.45]), 0)
    live.trial.promises = [p.but(workspace_slack_m=0.1, brakes_hard=True)
                           for p in live.trial.promises]
    while live.now_s < appeared_s + RIVAL_S + 0.5:
        rival.publish(messages.with_stamp(raw, live.source_clock.ns(live.now_s)))
        time.sleep(0.02)
    _nothing_moves(live, appeared_s + RIVAL_S, 'a second publisher of poses')
    live.node.destroy_publisher(rival)
    time.sleep(1.0)


@scenario
def second_policy_node(live: Processes, rng: np.random.Generator) -> None:
    """Another sender of commands for the same robot."""
    if rng.random() < 0.5:
        rival = live.node.create_publisher(EndEffectorCommand, 'command', qos.command_output(0.05))
        appeared_s = live.now_s
        time.sleep(RIVAL_S + 0.5)
        _nothing_moves(live, appeared_s + RIVAL_S, 'a second sender of commands')
        live.node.destroy_publisher(rival)
        time.sleep(1.0)
        return
    with start_victim(live.folder / f'rival{live.case}.log', live.values,
                      remap=('__node:=rival',)):
        live.receiver.wait(lambda: live.node.count_publishers('command') > 1, 30.0)
        appeared_s = live.now_s
        time.sleep(RIVAL_S + 0.5)
        _nothing_moves(live, appeared_s + RIVAL_S, 'a second policy node')
    live.receiver.wait(lambda: live.node.count_publishers('command') == 1, 30.0)
    time.sleep(1.0)


@scenario
def client_is_killed(live: Processes, rng: np.random.Generator) -> None:
    """Whoever sent the goal is gone: the goal ends."""
    live.stop('cancel')
    code = f'''
import rclpy
from rclpy.action import ActionClient
from vla_msgs.action import ExecuteInstruction
rclpy.init()
node = rclpy.create_node('client')
client = ActionClient(node, ExecuteInstruction, 'execute_instruction')
client.wait_for_server()
future = client.send_goal_async(
    ExecuteInstruction.Goal(instruction={INSTRUCTION!r}), feedback_callback=lambda _: None)
rclpy.spin_until_future_complete(node, future)
print('accepted', future.result().accepted, flush=True)
rclpy.spin(node)
'''
    asked_s = live.now_s
    client = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try:
        if 'accepted True' not in client.stdout.readline():
            live.trial.stuck.append('the goal of the client was refused')
            return
        moving = live.receiver.wait(lambda: not live.trial.sent[-1].hold and live.trial.sent[-1],
                                    RECOVERS_WITHIN_S)
        if not moving:
            live.trial.stuck.append('nothing moved for the goal of the client')
            return
        live.trial.goals.append(TrialGoal(moving.epoch, asked_s))
        client.send_signal(pick(rng, (signal.SIGKILL, signal.SIGTERM)))
        client.wait()
        left_s = live.now_s
        if not live.receiver.wait(lambda: live.trial.sent[-1].hold and live.trial.sent[-1].at_s
                                  > left_s, CLIENT_LEASE_S):
            live.trial.stuck.append(
                f'{CLIENT_LEASE_S:g} s after its client was gone the goal still runs')
        _nothing_moves(live, left_s + CLIENT_LEASE_S, 'a goal without its client')
    finally:
        client.kill()
        client.wait()


def _nothing_moves(live: Processes, from_s: float, why: str) -> None:
    moved = [sent for sent in live.trial.sent if not sent.hold and sent.at_s > from_s]
    if moved:
        live.trial.ends.append(f'{why}: {len(moved)} actions after {from_s:.2f} s')


def _beside(live: Processes, what: Callable[[], None]) -> None:
    """Do something in another thread, and see meanwhile that a stop is served."""
    thread = threading.Thread(target=what)
    thread.start()
    time.sleep(0.3)
    live.stop('estop')
    live.reset_estop()
    thread.join(30.0)
    if thread.is_alive():
        live.trial.stuck.append('a call did not return within 30 s')


def _resident_mb(pid: int) -> float:
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmRSS'):
            return int(line.split()[1]) / 1024
    return 0.0
