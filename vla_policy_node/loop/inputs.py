"""Checks serialised samples and passes good ones to pairer, camera watch and commander."""

from vla_policy_node.control.commander import Commander
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.joint_state import MeasuredJoints
from vla_policy_node.control.transform_tree import TransformError
from vla_policy_node.wire.cdr import MessageError, read_compressed_image, read_image, stamp_of
from vla_policy_node.wire.images import sample_compressed, sample_image
from vla_policy_node.wire.states import decode_pose, decode_positions, decode_state
from vla_policy_node.wire.streams import InputStreams, is_static, source_of
from vla_policy_node.wire.transforms import TransformPoses

# 3840 x 2160 in four channels. The pairer keeps 8 frames per camera: at most half a gigabyte.
MAX_IMAGE_BYTES = 33_554_432
# A pose has some 100 bytes, and the eighty joints of a humanoid 5000; the pairer keeps hundreds.
MAX_STATE_BYTES = 16_384
# Of all frames of a robot; none of it is kept but its newest transforms.
MAX_TRANSFORM_BYTES = 131_072


class RefusedError(HoldError):
    """A message that was not filed; `why` is the name under which it is counted."""

    def __init__(self, hold: Hold, message: str, why: str):
        super().__init__(hold, message)
        self.why = why


class SensorInputs:
    """Files what the subscriptions receive, and refuses what must not be used (executor thread).

    Every message is checked, not only those that an inference will use: a camera that freezes
    during a long inference, or a state source that jumps, is noticed at once. Pictures are judged
    by
    samples: 0.1 ms for a raw one, 1 to 2 ms for 1280x720 in JPEG, 13 ms in PNG.
    """

    def __init__(self, commander: Commander, streams: InputStreams):
        self._commander = commander
        self._streams = streams
        self._poses = {name: TransformPoses(source)
                       for name, source in streams.transforms.items()}

    def file(self, stream: str, raw: bytes) -> None:
        """File the bytes by their stamp.

        Raises RefusedError, and nothing else whatever the bytes are; the stream then holds until
        a good message comes.
        """
        static, stream = is_static(stream), source_of(stream)
        try:
            found = self._pose_of(stream, raw, static) if stream in self._poses else raw
            if found is not None:
                self._file(stream, found)
            return
        except RefusedError as error:
            refused = error
        except HoldError as error:
            refused = RefusedError(error.hold, str(error), error.hold.code.name.lower())
        except MessageError as error:
            refused = _refused(stream, str(error), 'unreadable')
        except TransformError as error:
            refused = _refused(stream, str(error), 'transforms')
        except Exception as error:  # the bytes may come from anybody, and must not end the process
            refused = _refused(stream, f'A message cannot be read: {error!r}.', 'unreadable')
        self._commander.parts.pairer.refuse(stream, refused.hold)
        if stream == self._streams.pose or stream in self._streams.joints:
            self._commander.parts.mover.measured.reject(refused)
        raise refused

    def _pose_of(self, stream: str, raw: bytes, static: bool) -> bytes | None:
        """Return the pose that transforms lead to, as a message; None if there is no newer one."""
        _check_size(stream, raw, MAX_TRANSFORM_BYTES, 'the robot alone')
        return self._poses[stream].take(raw, static)

    def _file(self, stream: str, raw: bytes) -> None:
        is_camera = stream in self._streams.cameras
        if is_camera:
            _check_size(stream, raw, MAX_IMAGE_BYTES, 'smaller pictures')
        else:
            _check_size(stream, raw, MAX_STATE_BYTES, 'the robot alone')
        parts = self._commander.parts
        pairer, frame_id = parts.pairer, parts.mover.spec.frame_id
        if stream == self._streams.pose:
            pose = decode_pose(raw, frame_id, stream)
            if pairer.file(stream, pose.stamp_ns, raw):
                self._commander.parts.mover.measured.observe(pose)
            return
        if is_camera:
            self._look(stream, raw)
        else:
            decode_state(raw, self._streams.states[stream], frame_id)
        if joints := self._streams.joints.get(stream):
            stamp_ns, positions = decode_positions(raw, stream, joints)
            if pairer.file(stream, stamp_ns, raw):
                parts.mover.measured.observe(MeasuredJoints(stream, stamp_ns, positions))
            return
        pairer.file(stream, stamp_of(raw), raw)

    def _look(self, camera: str, raw: bytes) -> None:
        if self._streams.is_compressed(camera):
            msg = read_compressed_image(raw)
            shape, samples = sample_compressed(msg)
        else:
            msg = read_image(raw)
            shape, samples = sample_image(msg)
        self._commander.parts.cameras.check(camera, msg.stamp_ns, shape, samples)


def _check_size(stream: str, raw: bytes, most: int, instead: str) -> None:
    if len(raw) > most:
        raise _refused(
            stream, f'A message of {stream} has {len(raw)} bytes, {most} are allowed; publish '
            f'{instead}.', 'too_large')


def _refused(stream: str, sentence: str, why: str) -> RefusedError:
    return RefusedError(Hold(HoldReason.INPUT_INVALID, stream), sentence, why)
