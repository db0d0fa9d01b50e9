"""Page of all topics, services and actions: every endpoint that a node creates.

Endpoints are found in the sources of nodes/, by the calls that create them. A topic that is
computed must be listed in `COMPUTED`, and every topic must be explained in `MEANING`: what is
missing or left over in either fails the build.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.reference.text import PACKAGE, code, table

HEAD = '''# Topics, services, actions

Every endpoint of every node, with the names before remapping; the inputs are those of the default
[robot contract](../contracts.md), and another contract names its own. The quality of service is
that of `nodes/qos.py`: inputs are best effort and two deep, so that every driver matches; commands
are reliable and one deep.
'''
MADE_BY = {
    'create_publisher': 'publishes', 'create_subscription': 'subscribes',
    'create_service': 'serves', '_TellingServer': 'serves',  # of the action
}
# Files of nodes/ that create endpoints of another one's node.
PARTS = {
    'goals': 'policy', 'reporting': 'policy', 'subscriptions': 'policy',
    'command_outputs': 'policy', 'guard_outlets': 'guard'}
# What the policy sees by the default contract; the player publishes it from a bag.
INPUTS = (
    ('Image', 'CAMERA/image_raw'), ('CompressedImage', 'CAMERA/image_raw/compressed'),
    ('PoseStamped', 'ee_pose'), ('JointState', 'gripper_state'))
# Where the name is an expression: file and expression -> type and names that it can be.
COMPUTED = {
    ('subscriptions', 'topic'): INPUTS,
    ('player_node', 'topic'): INPUTS,
    ('recorder_node', 'topic'): (('any', 'what is recorded'),),
    ('world_node', 'topic'): (('Image', 'CAMERA/image_raw'),),
    ('world_node', "f'{topic}/compressed'"): (('CompressedImage', 'CAMERA/image_raw/compressed'),),
    ('visualizer_node', "f'{name}/overlay'"): (('Image', 'CAMERA/overlay'),),
    ('visualizer_node', 'topic'): (
        ('Image', 'CAMERA/image_raw'), ('CompressedImage', 'CAMERA/image_raw/compressed')),
    ('guard_node', 'self._outlet.topic'): (
        ('EndEffectorCommand', 'command'), ('JointCommand', 'joint_command')),
    ('guard_outlets', 'group.topic'): (
        ('JointTrajectory', 'topic of a group'), ('Float64MultiArray', 'topic of a group')),
    ('guard_outlets', 'topic'): (('JointState', 'topic of measured joints'),),
}
MEANING = {
    'what is recorded': 'Inputs, commands, chunks, selections and status, and `extra_topics`.',
    'CAMERA/image_raw': 'Pictures: rgb8, bgr8, rgba8, bgra8 or mono8, rows may be padded.',
    'CAMERA/image_raw/compressed': 'The same as JPEG, with `compressed: true`.',
    'CAMERA/overlay': 'Picture with the kept tokens lit; drawn only while somebody looks.',
    'ee_pose': 'End effector in `frame_id`.',
    'gripper_state': 'Two finger positions, m.',
    'command': 'One bounded displacement (m, rad) and gripper per control period, or a hold with '
               'its reason.',
    'joint_command': 'The same for all joints of a robot that is moved by them.',
    'topic of a group': 'What the guard lets through, for the controllers of the joints: one '
                        'point at the end of the period, or velocities.',
    'topic of measured joints': 'Where the joints are, by the sources of the contract.',
    'twist_command': 'The same for MoveIt Servo (`speed_units`), if `publish_twist`.',
    'guarded_command': 'What the guard lets through, and its holds when nothing comes: '
                       '**subscribe the driver of your robot to this one**.',
    'guarded_twist_command': 'The same for MoveIt Servo, if `publish_twist`.',
    'action_chunk': 'Every inference: actions, time per stage, tokens, ages.',
    'token_selection': 'Kept tokens per camera, stamped as the picture they belong to.',
    'policy_status': 'State, hold reason, percentiles, a counter for everything dropped or '
                     'limited.',
    'policy_info': 'Latched: hash of the checkpoint, versions, prompt, action specification, '
                   'methods.',
    'filed': 'In lock-step only: what the node has received, for whoever plays a bag.',
    '/diagnostics': 'The same figures for `rqt_robot_monitor`, once a second.',
    'world_status': 'Of the simulated world: step, success, age of the observation at actuation.',
    '/clock': 'Simulated time, from the world or the player.',
    'reset_world': 'Next episode: task, layout (standard or shuffled), initial state or seed.',
    'execute_instruction': 'Action: one goal at a time, feedback, cancel, a result with a reason '
                           'code.',
    '~/start': 'Starts a goal, for clients that cannot call actions. It has no lease: a client '
               'that dies does not end it.',
    '~/cancel': 'Ends the goal.',
    '~/estop': 'Latched stop: acknowledged when its hold has been sent.',
    '~/reset_estop': 'Releases the stop; starts nothing.',
}


@dataclass(frozen=True, order=True)
class Endpoint:
    """One topic, service or action of one node."""

    node: str
    does: str
    name: str
    kind: str


def page() -> str:
    """Return the page. Raises ValueError for what is not explained or no longer exists."""
    found = sorted(set(endpoints()))
    names = {endpoint.name for endpoint in found}
    if names != MEANING.keys():
        raise ValueError(
            f'MEANING in {__name__} lacks {sorted(names - MEANING.keys())} and has '
            f'{sorted(MEANING.keys() - names)} that no node creates.')
    text = HEAD
    for node in sorted({endpoint.node for endpoint in found}, key=lambda n: (n != 'policy', n)):
        text += f'\n## Node `{node}`\n\n' + table(('', 'name', 'type', 'meaning'), (
            (endpoint.does, code(endpoint.name), code(endpoint.kind), MEANING[endpoint.name])
            for endpoint in found if endpoint.node == node)) + '\n'
    return text


def endpoints() -> Iterator[Endpoint]:
    """Yield every endpoint that the sources of the nodes create."""
    for path in sorted((PACKAGE / 'nodes').glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for call, bound in _calls(tree, {}):
            yield from _endpoints_of(path, call, bound)


def _endpoints_of(path: Path, call: ast.Call, bound: dict[str, ast.expr]) -> Iterator[Endpoint]:
    made_by = _name_of(call.func)
    kind, name = call.args[1:3] if made_by == '_TellingServer' else call.args[:2]
    node = PARTS.get(path.stem, path.stem.removesuffix('_node'))
    name = _resolved(name, bound)
    if isinstance(name, ast.Constant):
        found = ((ast.unparse(_resolved(kind, bound)), name.value),)
    else:
        try:
            found = COMPUTED[path.stem, ast.unparse(name)]
        except KeyError as error:
            raise ValueError(f'COMPUTED in {__name__} lacks {error}.') from None
    for type_name, topic in found:
        yield Endpoint(node, MADE_BY[made_by], topic, type_name)


def _calls(
    tree: ast.AST, bound: dict[str, ast.expr]
) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    """Yield the calls of MADE_BY below a node, with the variables of loops over literals."""
    if isinstance(tree, ast.For) and isinstance(tree.iter, ast.Tuple) \
            and isinstance(tree.target, ast.Tuple):
        for row in tree.iter.elts:
            values = zip(tree.target.elts, row.elts, strict=True)
            inner = {target.id: value for target, value in values}
            for child in tree.body:
                yield from _calls(child, bound | inner)
        return
    if isinstance(tree, ast.Call) and _name_of(tree.func) in MADE_BY:
        yield tree, bound
    for child in ast.iter_child_nodes(tree):
        yield from _calls(child, bound)


def _resolved(expression: ast.expr, bound: dict[str, ast.expr]) -> ast.expr:
    """Return an expression without `resolve_topic_name(...)` round it and with loops unrolled."""
    if isinstance(expression, ast.Call) and _name_of(expression.func).startswith('resolve_'):
        return _resolved(expression.args[0], bound)
    if isinstance(expression, ast.Name) and expression.id in bound:
        return bound[expression.id]
    return expression


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', '')
