"""Who may move the robot.

Regressions pinned: two goals that arrive together both pass (D10); an outcome that is lost because
the next goal ended too; a late stop that ends somebody else's goal; an emergency stop that
forgets itself.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vla_policy_node.control.hold import HoldReason
from vla_policy_node.control.session import OUTCOME_TEXTS, GoalRefusedError, Outcome, Session

SECOND = 1_000_000_000


@pytest.fixture
def session():
    made = Session()
    made.activate()
    return made


def test_epochs_go_on_above_those_of_an_earlier_process():
    former, later = Session(100), Session(200)
    for session in (former, later):
        session.activate()
    assert 100 < begin(former).epoch < 200 < begin(later).epoch


def begin(session, instruction='pick up the bowl'):
    return session.begin(instruction, SECOND)


def test_d10_of_many_goals_at_once_exactly_one_is_accepted(session):
    gate = threading.Barrier(8)

    def claim(number):
        gate.wait()
        try:
            return session.begin(f'goal {number}', SECOND)
        except GoalRefusedError:
            return None

    with ThreadPoolExecutor(8) as pool:
        goals = [goal for goal in pool.map(claim, range(8)) if goal]
    assert goals == [session.goal]


@pytest.mark.parametrize(
    ('prepare', 'words'),
    [
        (Session.deactivate, 'not active'),
        (Session.estop, 'reset_estop'),
        (begin, "'pick up the bowl' is running"),
    ],
)
def test_a_goal_that_cannot_begin_is_refused_with_the_reason(session, prepare, words):
    prepare(session)
    with pytest.raises(GoalRefusedError, match=words):
        begin(session, 'another')


@pytest.mark.parametrize(('instruction', 'duration_ns'), [('  \n', SECOND), ('go', 0), ('go', -1)])
def test_a_goal_without_words_or_time_is_refused(session, instruction, duration_ns):
    with pytest.raises(GoalRefusedError):
        session.begin(instruction, duration_ns)
    assert session.goal is None


def test_the_first_outcome_stays(session):
    goal = begin(session)
    assert session.end(Outcome.CANCELLED, goal.epoch)
    assert not session.end(Outcome.ESTOPPED, goal.epoch)
    session.estop()
    assert session.outcome(goal.epoch) is Outcome.CANCELLED


def test_an_old_epoch_cannot_end_the_goal_that_follows(session):
    old = begin(session)
    session.end(Outcome.CANCELLED)
    new = begin(session)
    assert not session.end(Outcome.INFERENCE_FAILED, old.epoch)
    assert session.goal == new


def test_an_outcome_is_still_there_after_the_next_goals_ended_too(session):
    first = begin(session)
    session.end(Outcome.CANCELLED)
    for _ in range(5):
        begin(session)
        session.end(Outcome.SUCCEEDED_DURATION)
    assert session.outcome(first.epoch) is Outcome.CANCELLED


def test_outcomes_nobody_asks_for_do_not_pile_up(session):
    for _ in range(500):
        begin(session)
        session.end(Outcome.CANCELLED)
    assert len(session._outcomes) < 100


def test_the_epoch_differs_for_every_goal_and_between_goals(session):
    epochs = [session.epoch]
    for _ in range(3):
        epochs.append(begin(session).epoch)
        session.end(Outcome.CANCELLED)
        epochs.append(session.epoch)
    assert epochs == sorted(set(epochs))


def test_the_emergency_stop_outlives_deactivation_and_its_reset_starts_nothing(session):
    goal = begin(session)
    session.estop()
    session.deactivate()
    session.activate()
    assert session.hold().code is HoldReason.ESTOP
    session.reset_estop()
    assert session.goal is None
    assert session.hold().code is not HoldReason.NONE
    assert session.outcome(goal.epoch) is Outcome.ESTOPPED


@pytest.mark.parametrize(
    ('outcome', 'code'),
    [
        (Outcome.INFERENCE_FAILED, HoldReason.INFERENCE_FAILED),
        (Outcome.CANCELLED, HoldReason.GOAL_FINISHED),
    ],
)
def test_the_hold_after_a_goal_says_if_the_policy_failed(session, outcome, code):
    begin(session)
    assert session.hold() is None
    session.end(outcome)
    assert session.hold().code is code


def test_a_goal_has_no_outcome_before_it_ends(session):
    goal = begin(session)
    assert session.outcome(goal.epoch) is None
    session.deactivate()
    assert session.outcome(goal.epoch) is Outcome.DEACTIVATED


def test_every_outcome_has_a_text():
    assert OUTCOME_TEXTS.keys() == set(Outcome)
