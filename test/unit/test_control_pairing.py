"""Pairing two cameras and the robot state by stamp.

Regressions pinned: a partial or stale observation reaches the policy (D1); ageing by arrival
instead of capture (D5); a camera that stops while the arm keeps moving; a looped bag; stamps in
the future.
"""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.pairing import ObservationPairer, Pair

MS = 1_000_000
NOW = 10_000 * MS
STREAMS = ('third_person', 'wrist', 'pose', 'gripper')


def make_pairer(**changes) -> ObservationPairer:
    arguments = {
        'cameras': ('third_person', 'wrist'),
        'states': ('pose', 'gripper'),
        'max_spread_ns': 20 * MS,
        'max_age_ns': 200 * MS,
        'future_tolerance_ns': 20 * MS,
    }
    return ObservationPairer(**{**arguments, **changes})


def file_all(pairer, stamp_ns, streams=STREAMS):
    for stream in streams:
        pairer.file(stream, stamp_ns, f'{stream}@{stamp_ns}')


@pytest.mark.parametrize('missing', STREAMS)
def test_d1_a_missing_stream_holds_and_is_named(missing):
    pairer = make_pairer()
    file_all(pairer, NOW, [stream for stream in STREAMS if stream != missing])
    expected = Hold(HoldReason.INPUT_MISSING, missing)
    assert pairer.take(NOW) == expected
    assert pairer.health(NOW) == expected


@pytest.mark.parametrize('dead', STREAMS)
def test_d1_a_dead_stream_holds_within_one_period_while_the_others_advance(dead):
    pairer = make_pairer()
    period = 50 * MS
    file_all(pairer, NOW)
    assert pairer.health(NOW) is None
    alive = [stream for stream in STREAMS if stream != dead]
    for tick in range(1, 10):
        now = NOW + tick * period
        file_all(pairer, now, alive)
        hold = pairer.health(now)
        if now - NOW > 200 * MS:
            assert hold == Hold(HoldReason.INPUT_STALE, dead)
            assert pairer.take(now) == hold
        else:
            # One dead camera may already leave the others without a partner to pair with.
            assert hold is None or hold.code in (HoldReason.CAMERA_SPREAD, HoldReason.INPUT_STALE)
    file_all(pairer, now, [dead])
    assert pairer.health(now) is None


def test_the_newest_set_is_taken_once_and_carries_its_stamps():
    pairer = make_pairer()
    file_all(pairer, NOW - 50 * MS)
    for stream, offset_ms in zip(STREAMS, (0, 7, -3, 4), strict=True):
        pairer.file(stream, NOW + offset_ms * MS, stream)
    pair = pairer.take(NOW + 10 * MS)
    assert isinstance(pair, Pair)
    assert (pair.stamp_ns, pair.spread_ns) == (NOW, 7 * MS)
    assert pair.payloads == {stream: stream for stream in STREAMS}
    assert pair.stamps_ns['pose'] == NOW - 3 * MS
    assert pairer.take(NOW + 10 * MS) == Hold(HoldReason.NONE)
    assert pairer.counts() == {'pairs': 1, 'third_person.superseded': 1, 'wrist.superseded': 1}


def test_a_frame_still_under_way_does_not_spoil_the_frame_before():
    pairer = make_pairer()
    file_all(pairer, NOW)
    pairer.file('third_person', NOW + 33 * MS, 'its wrist frame has not arrived')
    assert pairer.take(NOW + 40 * MS).stamp_ns == NOW
    assert pairer.take(NOW + 40 * MS).code is HoldReason.CAMERA_SPREAD
    pairer.file('wrist', NOW + 30 * MS, None)
    hold = pairer.take(NOW + 40 * MS)
    assert hold == Hold(HoldReason.INPUT_STALE, 'pose')
    file_all(pairer, NOW + 33 * MS, ('pose', 'gripper'))
    assert pairer.take(NOW + 40 * MS).stamp_ns == NOW + 33 * MS


def test_cameras_that_never_meet_are_a_spread_hold():
    pairer = make_pairer()
    for frame in range(10):
        stamp = NOW + frame * 50 * MS
        file_all(pairer, stamp, ('third_person', 'pose', 'gripper'))
        pairer.file('wrist', stamp + 25 * MS, None)
    expected = Hold(HoldReason.CAMERA_SPREAD, 'wrist')
    assert pairer.health(stamp + 25 * MS) == expected
    assert pairer.take(stamp + 25 * MS) == expected


def test_d1_the_nearest_state_must_be_fresh_too():
    for age_ms, fresh in ((185, True), (186, False)):
        pairer = make_pairer()
        file_all(pairer, NOW, ('third_person', 'wrist', 'gripper'))
        pairer.file('pose', NOW - 15 * MS, 'near the pictures, too old soon')
        pairer.file('pose', NOW + 100 * MS, 'fresh, too far from the pictures')
        result = pairer.take(NOW + age_ms * MS)
        assert isinstance(result, Pair) == fresh
        assert fresh or result == Hold(HoldReason.INPUT_STALE, 'pose')


def test_future_stamps_are_a_clock_jump():
    pairer = make_pairer()
    file_all(pairer, NOW)
    pairer.file('wrist', NOW + 20 * MS, None)
    assert pairer.health(NOW) is None
    pairer.file('wrist', NOW + 21 * MS, None)
    assert pairer.health(NOW) == Hold(HoldReason.CLOCK_JUMP, 'wrist')
    assert pairer.take(NOW) == Hold(HoldReason.CLOCK_JUMP, 'wrist')


def test_a_looped_bag_is_reported_once_and_recovers_by_itself():
    pairer = make_pairer()
    file_all(pairer, NOW)
    assert isinstance(pairer.take(NOW), Pair)
    start = NOW - 5_000 * MS
    pairer.file('third_person', start, None)
    assert pairer.health(NOW) == Hold(HoldReason.CLOCK_JUMP, 'third_person')
    # The clock is back as well; the other streams still hold stamps of the future.
    assert pairer.health(start) == Hold(HoldReason.CLOCK_JUMP, 'wrist')
    file_all(pairer, start, STREAMS[1:])
    assert pairer.health(start).code is HoldReason.CLOCK_JUMP
    assert pairer.health(start) is None
    assert pairer.take(start).stamp_ns == start
    assert {pairer.counts()[f'{stream}.backward'] for stream in STREAMS} == {1}


def test_repeated_and_overtaken_stamps_are_dropped_and_counted():
    pairer = make_pairer()
    pairer.file('wrist', NOW, 'first')
    pairer.file('wrist', NOW, 'again')
    pairer.file('wrist', NOW - 5 * MS, 'late')
    file_all(pairer, NOW, ('third_person', 'pose', 'gripper'))
    assert pairer.take(NOW).payloads['wrist'] == 'first'
    assert pairer.counts() == {'wrist.duplicate': 1, 'wrist.reordered': 1, 'pairs': 1}
    assert pairer.health(NOW) is None


def test_memory_is_bounded_and_every_evicted_frame_is_counted():
    pairer = make_pairer(depth=3)
    for frame in range(10):
        pairer.file('third_person', NOW + frame * MS, frame)
    assert pairer.counts() == {'third_person.evicted': 7}


def test_reset_forgets_the_samples():
    pairer = make_pairer()
    file_all(pairer, NOW)
    pairer.reset()
    assert pairer.ages_ns(NOW) == {}
    assert pairer.take(NOW).code is HoldReason.INPUT_MISSING
    file_all(pairer, NOW)
    assert isinstance(pairer.take(NOW), Pair)
    assert pairer.ages_ns(NOW + MS) == dict.fromkeys(STREAMS, MS)


def test_the_worker_is_woken_by_cameras_and_by_the_state_it_lacked():
    pairer = make_pairer()
    file_all(pairer, NOW)
    assert pairer.wait(0.0)
    assert isinstance(pairer.take(NOW), Pair)
    pairer.file('pose', NOW + MS, None)
    assert not pairer.wait(0.0), 'a state alone cannot complete a set'
    file_all(pairer, NOW + 40 * MS, ('third_person', 'wrist', 'gripper'))
    assert pairer.take(NOW + 40 * MS) == Hold(HoldReason.INPUT_STALE, 'pose')
    assert not pairer.wait(0.0)
    pairer.file('pose', NOW + 40 * MS, None)
    assert pairer.wait(0.0)


def test_wait_blocks_until_a_frame_arrives():
    pairer = make_pairer()
    woken = []
    worker = threading.Thread(target=lambda: woken.append(pairer.wait(10.0)))
    worker.start()
    pairer.file('wrist', NOW, None)
    worker.join(10.0)
    assert woken == [True]


def test_one_camera_is_enough():
    pairer = make_pairer(cameras=('third_person',), states=())
    pairer.file('third_person', NOW, 'picture')
    assert pairer.take(NOW).spread_ns == 0


@pytest.mark.parametrize(
    'changes', [{'cameras': ()}, {'states': ('wrist',)}, {'depth': 0}, {'max_age_ns': 0}]
)
def test_unusable_settings_are_refused(changes):
    with pytest.raises(ValueError, match=r'unusable.*;'):
        make_pairer(**changes)


events = st.lists(
    st.tuples(st.sampled_from(STREAMS), st.integers(-60, 120), st.integers(0, 60)), max_size=60
)


@settings(deadline=None)
@given(events)
def test_d1_no_sequence_of_samples_yields_a_partial_stale_or_repeated_set(sequence):
    pairer = make_pairer()
    now, taken = NOW, None
    newest = dict.fromkeys(STREAMS, NOW)
    for stream, step_ms, wait_ms in sequence:
        now += wait_ms * MS
        newest[stream] += step_ms * MS
        backward = pairer.counts().get('third_person.backward', 0)
        pairer.file(stream, newest[stream], newest[stream])
        if pairer.counts().get('third_person.backward', 0) > backward:
            taken = None
        pair = pairer.take(now)
        if isinstance(pair, Hold):
            continue
        assert set(pair.payloads) == set(STREAMS)
        assert pair.payloads == pair.stamps_ns
        stamps = [pair.stamps_ns[stream] for stream in STREAMS]
        assert all(now - 200 * MS <= stamp <= now + 20 * MS for stamp in stamps)
        assert abs(stamps[0] - stamps[1]) == pair.spread_ns <= 20 * MS
        assert all(abs(stamp - stamps[0]) <= 20 * MS for stamp in stamps[2:])
        assert taken is None or pair.stamp_ns > taken
        taken = pair.stamp_ns


def test_a_refused_message_holds_until_a_good_one_comes_and_hides_nothing_else():
    pairer, invalid = make_pairer(), Hold(HoldReason.INPUT_INVALID, 'gripper')
    file_all(pairer, NOW)
    pairer.refuse('gripper', invalid)
    assert pairer.health(NOW) == pairer.health(NOW) == invalid
    assert isinstance(pairer.take(NOW), Pair)  # the good ones from before are still there
    pairer.file('wrist', NOW + MS, None)
    assert pairer.health(NOW) == invalid
    pairer.file('gripper', NOW + MS, None)
    assert pairer.health(NOW) is None


def test_what_was_refused_is_forgotten_on_reset():
    pairer = make_pairer()
    pairer.refuse('wrist', Hold(HoldReason.INPUT_INVALID, 'wrist'))
    pairer.reset()
    file_all(pairer, NOW)
    assert pairer.health(NOW) is None


@pytest.mark.parametrize('back_ms', [0, 100, 10_000])
def test_no_sample_lives_longer_because_the_clock_of_the_stamps_is_set_back(back_ms):
    pairer, steady = make_pairer(), 5_000 * MS
    file_all(pairer, NOW)
    assert pairer.health(NOW, steady) is None
    pairer.health(NOW - back_ms * MS, steady + 100 * MS)
    assert pairer.health(NOW, steady + 200 * MS) is None
    assert pairer.health(NOW, steady + 201 * MS).code is HoldReason.INPUT_STALE
    file_all(pairer, NOW + MS)
    assert pairer.health(NOW + MS, steady + 400 * MS) is None


@pytest.mark.parametrize(('stamp', 'said'), [
    (NOW - 1300 * MS, 'too old (1.3 s old, limit 0.2 s, see max_age_s).'),
    (0, 'too old (its stamp is zero; its publisher must set header.stamp).'),
    (NOW + 50 * MS, 'future (0.05 s ahead of the clock of this node, limit 0.02 s, see future'),
    (NOW + 10**18, 'of another clock than that of this node; see use_sim_time'),
])
def test_a_hold_says_by_how_much_a_stamp_is_wrong(stamp, said):
    pairer = make_pairer()
    file_all(pairer, NOW, [stream for stream in STREAMS if stream != 'wrist'])
    pairer.file('wrist', stamp, b'')
    assert said in pairer.health(NOW).text


def test_a_hold_says_that_samples_have_the_stamps_of_another_clock():
    pairer = make_pairer()
    now = 1_700_000_000 * 10**9
    file_all(pairer, 12 * 10**9)
    assert 'stamped 12.0 s' in pairer.health(now).text
    assert 'use_sim_time' in pairer.health(now).text


def test_a_hold_says_how_far_apart_samples_are():
    pairer = make_pairer(state_tolerance_ns=10 * MS)
    file_all(pairer, NOW, ['third_person', 'pose', 'gripper'])
    pairer.file('wrist', NOW + 50 * MS, b'')
    assert '(0.05 s apart, limit 0.02 s, see max_spread_s).' in pairer.health(NOW + 50 * MS).text
    pairer = make_pairer(state_tolerance_ns=10 * MS)
    file_all(pairer, NOW, ['third_person', 'wrist', 'pose'])
    pairer.file('gripper', NOW - 15 * MS, b'')
    assert '(0.015 s from the picture of third_person, limit 0.01 s, see state_tolerance_s).' in (
        pairer.health(NOW).text)


def test_a_hold_is_the_same_whatever_its_figures():
    assert Hold(HoldReason.INPUT_STALE, 'wrist', 'a') == Hold(HoldReason.INPUT_STALE, 'wrist', 'b')
