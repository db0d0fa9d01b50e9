"""Start the policy, the visualizer and, if asked, the simulated world and RViz.

    ros2 launch vla_policy_node bringup.launch.py checkpoint:=/path/to/checkpoint
    ros2 launch vla_policy_node bringup.launch.py world:=true rviz:=true
    ros2 launch vla_policy_node bringup.launch.py --show-args

What is started is described in vla_policy_node/system/description.py.
"""

import signal
from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnShutdown
from launch.events.process import SignalProcess
from launch.logging import get_logger, launch_config
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.utilities import prefix_namespace

from vla_policy_node.system.arguments import ARGUMENTS, misspelt
from vla_policy_node.system.description import describe, topic_arguments
from vla_policy_node.system.processes import RESPAWN_S, leash, middleware_environment
from vla_policy_node.system.view import is_on_sim_time, write_view


def declare(argument):
    value = argument.default
    return DeclareLaunchArgument(
        argument.name,
        default_value=str(value).lower() if isinstance(value, bool) else value,
        description=argument.description,
        choices=list(argument.choices) or None,
    )


def start(context):
    given = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    # A launch file around this one may have a namespace of its own.
    given['namespace'] = prefix_namespace(
        context.launch_configurations.get('ros_namespace'), given['namespace']) or ''
    # Topics of a contract that is known only now; the file around may have others.
    more = topic_arguments(given)
    given |= {name: value for name, value in context.launch_configurations.items()
              if name in more}
    names = context.launch_configurations.keys() - {'ros_namespace'}
    for sentence in misspelt(names, {*more, 'rviz'}):
        get_logger('bringup').warning(sentence)
    nodes = describe(given)
    if given['play']:  # nothing starts for a bag that cannot be played
        from vla_policy_node.replay.played import check_played

        check_played(nodes)
    return [
        *(
            Node(
                package=node.package,
                executable=node.executable,
                name=node.name,
                namespace=node.namespace or '/',
                ros_arguments=node.ros_arguments(),
                additional_env=leash(),
                output='screen',
                emulate_tty=True,
                respawn=node.respawns,
                respawn_delay=RESPAWN_S,
                on_exit=None if node.respawns else Shutdown(reason=f'{node.name} ended'),
            )
            for node in nodes
        ),
        *(rviz(nodes) if IfCondition(LaunchConfiguration('rviz')).evaluate(context) else ()),
    ]


def rviz(nodes):
    namespace = nodes[0].namespace
    view = Path(launch_config.log_dir) / f"vla{namespace.replace('/', '.')}.rviz"
    write_view(nodes, view)
    return [Node(
        package='rviz2',
        executable='rviz2',
        namespace=namespace or '/',
        arguments=['-d', str(view)],
        parameters=[{'use_sim_time': is_on_sim_time(nodes)}],
    )]


def interrupt(event, context):
    """Interrupt the nodes at once, whatever ended the launch.

    After a SIGINT, launch takes for granted that its nodes have got one, too. That is so in a
    terminal; else they would drive on for the 5 s until it sends SIGTERM.
    """
    return EmitEvent(event=SignalProcess(
        signal_number=signal.SIGINT, process_matcher=lambda process: True))


def generate_launch_description():
    return LaunchDescription([
        *(declare(argument) for argument in ARGUMENTS),
        DeclareLaunchArgument('rviz', default_value='false', description='Start RViz.'),
        *(SetEnvironmentVariable(*pair) for pair in middleware_environment().items()),
        OpaqueFunction(function=start),
        RegisterEventHandler(OnShutdown(on_shutdown=interrupt)),
    ])
