"""Bad, missing, late and frozen inputs, through the real node and real DDS.

Regressions pinned: D1 zero-filled inputs, D5 age by arrival, D7 padded rows; a camera that stops
while the arm moves on; a bag that loops.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

import math
import struct

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from node_bench import bench, checkpoint, is_still, make_active, make_bench, script
from robot_double import STREAMS, change, lose, picture, stamp
from ros_testing import ros

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import HoldReason

Result = ExecuteInstruction.Result
MS = 1_000_000


@pytest.mark.parametrize('missing', STREAMS)
def test_d1_nothing_moves_and_nothing_is_inferred_before_all_streams_are_there(
    bench, script, missing
):
    bench.start()
    bench.observe(streams=[stream for stream in STREAMS if stream != missing])
    command = bench.advance()
    assert is_still(command)
    assert command.hold_reason.code == HoldReason.INPUT_MISSING
    assert command.hold_reason.stream == missing
    assert missing in command.hold_reason.text
    assert not script.calls
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE
    assert all(
        image.any() for _, observation in script.calls for image in observation.images.values()
    )


@pytest.mark.parametrize('frozen', STREAMS)
def test_d5_a_stream_that_stops_holds_by_its_stamp_and_recovers_by_itself(bench, frozen):
    bench.run_a_little()
    last_ns = bench.now_ns
    bench.robot.alter[frozen] = change(header__stamp=bench.robot.chunks[-1].header.stamp)
    while (command := bench.advance()).hold_reason.code in (
        HoldReason.NONE,
        HoldReason.CHUNK_EXHAUSTED,
    ):
        bench.observe()
        assert bench.now_ns - last_ns <= 400 * MS
    assert command.hold_reason.code == HoldReason.INPUT_STALE
    assert command.hold_reason.stream == frozen
    assert bench.wait_status(lambda s: s.hold.stream == frozen)
    bench.robot.alter.clear()
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE


def test_a_camera_whose_stamps_are_old_from_the_start_never_moves_the_robot(bench, script):
    bench.start()
    for _ in range(3):
        bench.observe(offset_ns=-400 * MS)
        command = bench.advance()
        assert command.hold_reason.code == HoldReason.INPUT_STALE
    assert not script.calls


def test_stale_inputs_are_an_error_in_diagnostics_that_names_the_stream(bench):
    bench.start()
    bench.robot.alter['wrist'] = lose
    for _ in range(30):
        bench.observe()
        bench.advance()
    commands = bench.robot.wait(lambda: bench.robot.diagnostics, 'diagnostics')[-1].status[0]
    assert commands.level == b'\x02'
    assert 'wrist' in commands.message


def test_inputs_that_stay_bad_end_the_goal_with_the_reason(make_active):
    bench = make_active(input_timeout_s=0.5)
    handle = bench.send_goal()
    bench.infer()
    bench.advance()
    while bench.advance().hold_reason.code != HoldReason.GOAL_FINISHED:
        assert bench.now_ns
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.status == GoalStatus.STATUS_ABORTED
    assert answer.result.code == Result.INPUT_LOST
    bench.observe()
    assert is_still(bench.advance())  # good inputs alone do not start it again


def test_a_camera_that_repeats_its_picture_is_named(make_active):
    bench = make_active(freeze_timeout_s=0.2)
    bench.run_a_little()
    bench.robot.alter['wrist'] = change(data=picture('wrist', 0).tobytes())
    for _ in range(4):  # stamps that span 0.15 s
        bench.infer()
        assert bench.advance().hold_reason.code == HoldReason.NONE
    bench.observe()
    command = bench.advance()
    assert command.hold_reason.code == HoldReason.INPUT_FROZEN
    assert command.hold_reason.stream == 'wrist'
    bench.robot.alter.clear()
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE


def test_a_looped_bag_holds_for_its_jump_then_goes_on(bench):
    bench.run_a_little()
    bench.set_clock(bench.now_ns - 60_000 * MS)
    # The clock that goes back makes the node tick: that command must not be the hold of the jump.
    bench.wait_command(lambda command: stamp(command) == bench.now_ns)
    bench.observe()
    jump = bench.advance()
    assert is_still(jump)
    assert jump.hold_reason.code == HoldReason.CLOCK_JUMP
    for _ in range(len(STREAMS)):  # each stream goes back once
        bench.infer()
        if bench.advance().hold_reason.code == HoldReason.NONE:
            break
    bench.infer()
    command = bench.advance()
    assert command.hold_reason.code == HoldReason.NONE
    assert stamp(command) == bench.now_ns


def test_stamps_of_another_clock_hold(bench, script):
    bench.start()
    bench.observe(offset_ns=3_600_000 * MS)
    assert bench.advance().hold_reason.code == HoldReason.CLOCK_JUMP
    assert not script.calls


def test_cameras_too_far_apart_are_never_paired(bench, script):
    bench.start()

    def late(message):
        late_ns = bench.now_ns - 60 * MS
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(late_ns, 10**9)
        return message

    bench.robot.alter['wrist'] = late
    bench.observe()
    command = bench.advance()
    assert command.hold_reason.code == HoldReason.CAMERA_SPREAD
    assert command.hold_reason.stream == 'wrist'
    assert not script.calls


def test_d7_padded_rows_reach_the_policy_without_their_padding(bench, script):
    def pad(message):
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        rows = np.pad(rows, ((0, 0), (0, 8)), constant_values=255)
        return change(step=message.step + 8, data=rows.tobytes())(message)

    bench.start()
    bench.robot.alter['third_person'] = pad
    bench.infer()
    image = script.calls[-1][1].images['third_person']
    np.testing.assert_array_equal(image, picture('third_person', bench.robot.frame))


def test_compressed_pictures_reach_the_policy_and_broken_ones_hold(make_active, script):
    bench = make_active(compressed=True)
    bench.run_a_little()
    np.testing.assert_array_equal(
        script.calls[-1][1].images['wrist'], picture('wrist', bench.robot.frame))
    bench.robot.alter['wrist'] = change(data=b'no picture')
    bench.observe()
    command = bench.advance()
    assert command.hold_reason.code == HoldReason.INPUT_INVALID
    assert command.hold_reason.stream == 'wrist'


@pytest.mark.parametrize(('camera', 'alteration'), [
    ('wrist', change(data=bytes(24 * 32 * 3))),  # black
    ('third_person', change(data=b'\xff' * 24 * 32 * 3)),
    ('wrist', change(width=16, step=48)),
    ('third_person', change(encoding='bgr8')),
    ('wrist', change(data=picture('third_person', 5).tobytes())),
])
def test_a_camera_that_shows_something_else_holds_and_comes_back(
    bench, script, camera, alteration
):
    bench.run_a_little()
    script.forget()
    bench.robot.alter[camera] = alteration
    bench.observe()
    command = bench.advance()
    assert is_still(command)
    assert command.hold_reason.code == HoldReason.CAMERA_CHANGED
    assert command.hold_reason.stream == camera
    assert not script.calls
    bench.robot.alter.clear()
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE


def test_a_camera_that_changes_its_size_needs_a_new_goal(bench):
    bench.run_a_little()
    for _ in range(2):
        bench.infer()
        bench.advance()
    bench.robot.alter['wrist'] = change(height=20)
    for _ in range(3):
        bench.observe()
        assert bench.advance().hold_reason.code == HoldReason.CAMERA_CHANGED
    assert bench.robot.call('cancel').success
    bench.run_a_little()


GARBAGE = {
    'nothing': b'',
    'no_cdr': b'\xff' * 64,
    'header_alone': b'\x00\x01\x00\x00',
    'stamp_alone': b'\x00\x01\x00\x00' + struct.pack('<iI', 1000, 0),
    'before_1970': b'\x00\x01\x00\x00' + struct.pack('<iII', -5, 0, 0) + bytes(200),
    'nanoseconds': b'\x00\x01\x00\x00' + struct.pack('<iII', 5, 2**32 - 1, 0) + bytes(200),
    'no_utf8': b'\x00\x01\x00\x00' + struct.pack('<iII', 1000, 0, 8) + b'\xff' * 200,
    'lengths': b'\x00\x01\x00\x00' + struct.pack('<iI', 1000, 0) + b'\xff' * 400,
    'huge_state': b'\x00\x01\x00\x00' + struct.pack('<iI', 1000, 0) + bytes(100_000),
}


@pytest.mark.parametrize('stream', STREAMS)
def test_no_bytes_of_any_topic_end_the_process_or_the_goal(bench, stream):
    bench.run_a_little()
    for name, raw in GARBAGE.items():
        target = bench.robot.filed + 1
        bench.robot.inputs[stream].publish(raw)  # bytes go out as they are
        bench.robot.wait(lambda: bench.robot.filed >= target, f'{name} on {stream}')  # noqa: B023
        command = bench.advance()
        assert command.hold_reason.code == HoldReason.INPUT_INVALID, name
        assert command.hold_reason.stream == stream
        bench.infer()
        assert bench.advance().hold_reason.code == HoldReason.NONE, name
    assert sum(
        count for name, count in bench.node._counts.items() if name.startswith(stream)
    ) == len(GARBAGE)


NAN = math.nan
BROKEN = {
    'encoding': ('wrist', change(encoding='32FC1')),
    'truncated': ('third_person', change(data=b'\0' * 10)),
    'nan_pose': ('ee_pose', change(pose__position__x=NAN)),
    'nan_rotation': ('ee_pose', change(pose__orientation__x=NAN)),
    'no_unit_quaternion': ('ee_pose', change(pose__orientation__w=0.5)),
    'wrong_frame': ('ee_pose', change(header__frame_id='camera_link')),
    'one_finger': ('gripper_state', change(position=[0.02])),
    'a_whole_arm': ('gripper_state', change(position=[0.02, -0.02, 0.5])),
    'nan_finger': ('gripper_state', change(position=[0.02, NAN])),
}


@pytest.mark.parametrize('fault', BROKEN)
def test_data_that_cannot_be_used_hold_and_are_named_and_the_node_goes_on(
    make_active, script, fault
):
    bench = make_active(state_tolerance_s=0.01)  # no older state may step in
    stream, alteration = BROKEN[fault]
    bench.run_a_little()
    script.forget()
    bench.robot.alter[stream] = alteration
    bench.observe()
    assert sum(n for name, n in bench.node._counts.items() if name.startswith(stream)) == 1
    command = bench.advance()
    assert is_still(command)
    assert command.hold_reason.code == HoldReason.INPUT_INVALID
    assert command.hold_reason.stream == stream
    assert not script.calls
    bench.robot.alter.clear()
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE
