"""Faults of clients, of parameters and of the policy itself."""

from collections.abc import Callable

import numpy as np

from vla_policy_node.bench.faults.kinds import kind, pick
from vla_policy_node.bench.faults.records import TimeSpan
from vla_policy_node.bench.faults.trial import INSTRUCTION, Fault, Simulation

Rng = np.random.Generator


# --- clients ---

@kind('goal_stops')
def goal_stops(rng: Rng, span: TimeSpan) -> Fault:
    """A stop at a random moment, and perhaps a new goal at another one."""
    stop = pick(rng, ('cancel', 'estop', 'deactivate'))
    again = rng.random() < 0.7

    def restart(simulation: Simulation) -> None:
        if again:
            simulation.reset_estop()
            simulation.activate()
            simulation.begin()

    return Fault('goal_stops', span, begin=lambda s: s.stop(stop), end=restart)


@kind('goal_storm')
def goal_storm(rng: Rng, span: TimeSpan) -> Fault:
    """Clients that start, cancel and stop all the time."""
    times = np.sort(rng.uniform(span.from_s, span.until_s, int(rng.integers(3, 40))))
    acts = [pick(rng, ('begin', 'begin', 'cancel', 'estop', 'reset')) for _ in times]

    def act(simulation: Simulation, name: str) -> None:
        if name == 'begin':
            simulation.begin()
        elif name == 'reset':
            simulation.reset_estop()
        else:
            simulation.stop(name)

    def plan(simulation: Simulation) -> None:
        for at_s, name in zip(times.tolist(), acts, strict=True):
            simulation.at(at_s, lambda name=name: act(simulation, name))

    return Fault('goal_storm', span, begin=plan)


@kind('goal_requests')
def goal_requests(rng: Rng, span: TimeSpan) -> Fault:
    """Requests that cannot be followed, during and between goals."""
    text, duration_s = pick(rng, (
        ('', 1.0), (' \n\t', 1.0), ('x' * 1_000_000, 1.0), (INSTRUCTION, 0.0), (INSTRUCTION, -5.0),
        ('\x00', 1.0), ('\U0001f916' * 50_000, 1.0)))
    between = rng.random() < 0.5

    def ask(simulation: Simulation) -> None:
        if between:
            simulation.stop('cancel')
        simulation.begin(text, duration_s)

    return Fault('goal_requests', span, begin=ask)


@kind('goal_ends')
def goal_ends(rng: Rng, span: TimeSpan) -> Fault:
    """A goal whose time is over."""
    duration_s = rng.uniform(0.01, 0.5)

    def restart(simulation: Simulation) -> None:
        simulation.stop('cancel')
        simulation.begin(duration_s=duration_s)

    return Fault('goal_ends', span, begin=restart)


# --- parameters ---

@kind('parameter_limits')
def parameter_limits(rng: Rng, span: TimeSpan) -> Fault:
    """Limits tightened and loosened while the robot moves."""
    factor = pick(rng, (0.05, 0.3, 0.9, 1.5, 10.0))
    names = ('max_linear_velocity_m_s', 'max_angular_velocity_rad_s',
             'max_linear_acceleration_m_s2', 'max_angular_acceleration_rad_s2',
             'max_step_translation_m', 'max_step_rotation_rad')
    chosen = [name for name in names if rng.random() < 0.5] or [names[0]]

    def scale(simulation: Simulation, by: float) -> None:
        parameters = simulation.parameters
        simulation.change(**{name: getattr(parameters, name) * by for name in chosen})

    return Fault('parameter_limits', span, begin=lambda s: scale(s, factor),
                 end=lambda s: scale(s, 1.0 / factor), promise={'brakes_hard': True})


@kind('parameter_inputs')
def parameter_inputs(rng: Rng, span: TimeSpan) -> Fault:
    """What is asked of the inputs changes while the robot moves."""
    changes = pick(rng, (
        {'max_age_s': 0.15}, {'max_age_s': 1.0}, {'max_spread_s': 0.0}, {'max_spread_s': 0.2},
        {'state_tolerance_s': 0.001}, {'future_tolerance_s': 0.0}, {'input_timeout_s': 0.05},
        {'max_age_s': float('nan')}, {'max_age_s': -1.0}))
    return _changed('parameter_inputs', span, lambda s: changes)


@kind('parameter_execution')
def parameter_execution(rng: Rng, span: TimeSpan) -> Fault:
    """Another way of playing chunks while the robot moves; many changes in a row."""
    times = np.sort(rng.uniform(span.from_s, span.until_s, int(pick(rng, (1, 3, 20)))))
    changes = [pick(rng, (
        {'execution_mode': 'sync'}, {'execution_mode': 'async'},
        {'execution_mode': 'temporal_ensemble'}, {'ensemble_weighting': 'adaptive'},
        {'ensemble_weighting': 'cogact'}, {'ensemble_horizon': 1}, {'ensemble_horizon': 64},
        {'gripper_threshold': 0.9}, {'gripper_dead_band': 1.0}, {'default_duration_s': 0.2},
    )) for _ in times]

    def plan(simulation: Simulation) -> None:
        for at_s, change in zip(times.tolist(), changes, strict=True):
            simulation.at(at_s, lambda change=change: simulation.change(**change))

    return Fault('parameter_execution', span, begin=plan)


def _changed(name: str, span: TimeSpan, changes: Callable[[Simulation], dict]) -> Fault:
    before: dict = {}

    def begin(simulation: Simulation) -> None:
        wanted = changes(simulation)
        before.update({key: getattr(simulation.parameters, key) for key in wanted})
        simulation.change(**wanted)

    return Fault(name, span, begin=begin, end=lambda s: s.change(**before))


# --- policy ---

def _answering(name: str, span: TimeSpan, answer: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def begin(simulation: Simulation) -> None:
        simulation.policy.answer = answer

    def end(simulation: Simulation) -> None:
        simulation.policy.answer = lambda actions: actions

    return Fault(name, span, begin=begin, end=end)


@kind('policy_slow')
def policy_slow(rng: Rng, span: TimeSpan) -> Fault:
    """Inferences that take much longer, now and then or always."""
    latency_s, share = pick(rng, (0.2, 0.5, 1.0, 2.0)), pick(rng, (0.2, 1.0))

    def begin(simulation: Simulation) -> None:
        usual_s = simulation.policy.latency_s

        def answer(actions: np.ndarray) -> np.ndarray:
            simulation.policy.latency_s = latency_s if rng.random() < share else usual_s
            return actions

        simulation.policy.answer = answer
        simulation.policy.latency_s = latency_s

    def end(simulation: Simulation) -> None:
        simulation.policy.answer = lambda actions: actions
        simulation.policy.latency_s = simulation.setup.latency_s

    return Fault('policy_slow', span, begin=begin, end=end, lingers_s=latency_s)


@kind('policy_numbers')
def policy_numbers(rng: Rng, span: TimeSpan) -> Fault:
    """NaN, infinity and numbers beyond measure somewhere in the chunk."""
    bad = pick(rng, (np.nan, np.inf, -np.inf, 1e306, -1e306, 1e154, 1e30))
    share, everywhere = pick(rng, (0.3, 1.0)), rng.random() < 0.3

    def answer(actions: np.ndarray) -> np.ndarray:
        if rng.random() < share:
            actions = actions.copy()
            if everywhere:
                actions[:] = bad
            else:
                actions[int(rng.integers(len(actions))), int(rng.integers(7))] = bad
        return actions

    return _answering('policy_numbers', span, answer)


@kind('policy_shapes')
def policy_shapes(rng: Rng, span: TimeSpan) -> Fault:
    """Chunks of another shape or kind."""
    shape = pick(rng, ((0, 7), (8, 6), (8, 8), (7,), (), (1, 8, 7)))
    return _answering('policy_shapes', span, lambda actions: np.zeros(shape))


@kind('policy_raises')
def policy_raises(rng: Rng, span: TimeSpan) -> Fault:
    """Exceptions, also those that end a thread or a process if nobody catches them."""
    error = pick(rng, (RuntimeError, ValueError, MemoryError, SystemExit, RecursionError,
                       StopIteration, GeneratorExit, AssertionError))

    def answer(actions: np.ndarray) -> np.ndarray:
        raise error('the weights have evaporated')

    return _answering('policy_raises', span, answer)


@kind('policy_wild')
def policy_wild(rng: Rng, span: TimeSpan) -> Fault:
    """Finite actions as large and as uneven as they can be, straight at the walls."""
    scale = pick(rng, (1.0, 10.0, 1e6))
    style = pick(rng, ('corner', 'flip', 'noise'))
    corner = pick(rng, (-1.0, 1.0)) * np.ones(7)

    def answer(actions: np.ndarray) -> np.ndarray:
        if style == 'noise':
            return scale * rng.normal(size=actions.shape)
        signs = np.where(np.arange(len(actions))[:, None] % 2, -1.0, 1.0) if style == 'flip' else 1
        return scale * signs * np.tile(corner, (len(actions), 1))

    return _answering('policy_wild', span, answer)
