"""The order in which a replay takes messages that were recorded at one time."""

from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.replay.timeline import _MOST_TOGETHER, states_first

CAMERAS = ('left', 'right')
streams = st.sampled_from(('left', 'right', 'pose', 'gripper'))


@given(st.lists(st.tuples(st.integers(0, 3), streams), max_size=_MOST_TOGETHER))
def test_states_come_before_the_pictures_of_their_time_and_nothing_else_moves(found):
    messages = [(time_ns, stream, bytes([i])) for i, (time_ns, stream) in
                enumerate(sorted(found, key=lambda message: message[0]))]
    ordered = list(states_first(messages, CAMERAS))
    assert ordered == sorted(messages, key=lambda m: (m[0], m[1] in CAMERAS))


def test_pictures_of_one_time_are_held_back_in_a_bounded_number():
    messages = ((0, 'left', b'') for _ in range(10**6))
    taken = states_first(messages, CAMERAS)
    next(taken)
    assert sum(1 for _ in messages) == 10**6 - _MOST_TOGETHER - 1
