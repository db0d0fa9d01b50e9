"""What is said of a clock that messages set."""

import pytest

from vla_policy_node.control.clock_rate import ClockRate

S = 10**9
PERIOD = S // 20
PATIENCE = PERIOD * 3 // 2


def said(*steps, after_s=0.0, count=10, rate=None):
    """What a watch says after so many steps of (simulated s, real s), and after_s of silence."""
    rate = rate or ClockRate(PERIOD, PATIENCE, S)
    now = steady = 100 * S
    for _ in range(count):
        for went_s, passed_s in steps:
            now, steady = now + round(went_s * S), steady + round(passed_s * S)
            rate.arrived(now, steady)
    return rate.trouble(now, steady + round(after_s * S))


@pytest.mark.parametrize('step_s', [0.001, 0.01, 0.05])
def test_a_clock_as_it_should_be_is_no_trouble(step_s):
    assert said((step_s, step_s)) == ('', '')
    assert said((step_s, step_s * 1.2)) == ('', '')
    assert said((step_s, step_s / 5)) == ('', '')


def test_a_clock_that_never_came_is_named_from_the_start():
    kind, text = ClockRate(PERIOD, PATIENCE, S).trouble(0, 5 * S)
    assert kind == 'none'
    assert text.startswith('no /clock')


def test_a_clock_slower_than_the_control_rate_is_said_with_the_rate_that_it_takes():
    kind, text = said((0.1, 0.1))
    assert kind == 'coarse'
    assert 'every 0.1 s' in text
    assert '20 Hz or more' in text


def test_a_simulation_much_slower_than_real_time_is_told_the_timeout_that_it_takes():
    kind, text = said((0.01, 0.05))
    assert kind == 'slow'
    assert 'clock_timeout_s to 0.38 or more' in text
    patient = ClockRate(PERIOD, round(0.38 * S), S)
    assert said((0.01, 0.05), rate=patient) == ('', '')


def test_a_clock_that_stops_is_said_and_a_step_back_starts_anew():
    assert said((0.01, 0.01), after_s=2.5) == ('stopped', 'no /clock for 2.5 s')
    assert said((0.1, 0.1), (-50.0, 0.1)) == ('', '')


@pytest.mark.parametrize('went_s', [0.01, 4.0], ids=['paused', 'went on unheard'])
def test_a_clock_that_comes_again_after_a_pause_is_judged_by_what_comes_then(went_s):
    assert said((went_s, 4.0), *[(0.01, 0.01)] * 10, count=2) == ('', '')


def test_in_lock_step_any_rate_is_right():
    assert said((0.5, 3.0), after_s=9.0, rate=ClockRate(None, None, None)) == ('', '')
