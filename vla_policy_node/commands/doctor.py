"""`vla doctor`: what is installed, what is missing, and how to get it."""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vla_policy_node.common.gl import gl_problem
from vla_policy_node.common.terminal import fitted, make_console

SETUP = 'run `make setup`'
# Draws a red ball and looks at the middle of the picture: an import alone proves nothing.
_RENDER = '''
import os
import vla_policy_node.world
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size="1" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
red, green, blue = renderer.render()[16, 16]
assert red > 2 * max(int(green), 1)
print(os.environ['MUJOCO_GL'])
'''


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report; remedy says how to get what is missing.

    found: what is there, empty if it is missing. needed: without it the package does not work.
    sound: whether what is there works well enough.
    """

    name: str
    found: str
    remedy: str = ''
    needed: bool = True
    sound: bool = True


def report(transport_s: float = 0.0) -> int:
    """Print the table; return 1 if something needed is missing, else 0.

    transport_s: how long to send images between two processes; 0: not at all.
    """
    table = Table('', 'what', 'found', 'how to get it')
    console = make_console()
    with console.status('Looking ...') as status:
        findings = [make() for make in CHECKS]
        if transport_s:
            findings.append(check_transport(transport_s, status.update))
    for finding in findings:
        mark, remedy = Text('ok', 'green'), ''
        if not finding.found:
            mark, remedy = Text('not there', 'yellow'), finding.remedy
            if finding.needed:
                mark = Text('missing', 'red')
        elif not finding.sound:
            mark, remedy = Text('poor', 'yellow'), 'see below'
        table.add_row(mark, finding.name, finding.found, remedy)
    console.print(fitted(table, 1))
    for finding in findings:
        if not finding.sound:  # has commands to copy, which a narrow column would break
            console.print(f'{finding.name}: {finding.remedy}', soft_wrap=True, markup=False)
    return int(any(f.needed and not f.found for f in findings))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ''


def check_python() -> Diagnosis:
    """Return the interpreter's version; 3.10 is the oldest that works."""
    version = platform.python_version() if sys.version_info >= (3, 10) else ''
    return Diagnosis('Python', version, 'use Python 3.10 or newer')


def check_torch() -> Diagnosis:
    """Return torch's version."""
    return Diagnosis('torch', _version('torch'), SETUP)


def check_devices() -> Diagnosis:
    """Return the devices a policy can run on."""
    if not importlib.util.find_spec('torch'):
        return Diagnosis('devices', '', SETUP)
    import torch

    names = [f'cpu ({os.cpu_count()} cores)']
    names += [f'cuda:{i} ({torch.cuda.get_device_name(i)})'
              for i in range(torch.cuda.device_count())]
    return Diagnosis('devices', ', '.join(names))


def check_bfloat16() -> Diagnosis:
    """Return whether the processor multiplies bfloat16 itself."""
    cpu_info = Path('/proc/cpuinfo')
    flags = cpu_info.read_text(encoding='utf-8').split() if cpu_info.is_file() else []
    found = ', '.join(flag for flag in ('avx512_bf16', 'amx_bf16', 'bf16') if flag in flags)
    return Diagnosis(
        'fast bfloat16 (CPU)', found, 'keep `dtype: float32` on this CPU', needed=False)


def check_rclpy() -> Diagnosis:
    """Return rclpy's version and the middleware it really loads."""
    try:
        from rclpy.utilities import get_rmw_implementation_identifier

        middleware = get_rmw_implementation_identifier()
    except ImportError:
        return Diagnosis('rclpy', '', f'source a ROS 2 installation, or {SETUP}')
    return Diagnosis('rclpy', f'{_version("rclpy") or _version("ros-rclpy")} on {middleware}')


def check_environment() -> Diagnosis:
    """Return what decides who hears whom."""
    names = ('ROS_DISTRO', 'ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'RMW_IMPLEMENTATION')
    values = [f'{name}={os.environ[name]}' for name in names if os.environ.get(name)]
    return Diagnosis('ROS environment', ', '.join(values) or 'nothing set: domain 0, this subnet')


def check_messages() -> Diagnosis:
    """Return whether the built messages can be imported."""
    try:
        from vla_msgs.msg import EndEffectorCommand

        EndEffectorCommand()
    except ImportError:
        return Diagnosis('vla_msgs', '', f'{SETUP}, or colcon build --base-paths . vla_msgs')
    return Diagnosis('vla_msgs', 'importable')


def check_bags() -> Diagnosis:
    """Return what reads and writes recordings."""
    return Diagnosis('rosbags', _version('rosbags'), 'pip install rosbags mcap', needed=False)


def check_build_tools() -> Diagnosis:
    """Return the tools that build the messages."""
    tools = {'colcon': shutil.which('colcon', path=_tool_path()),
             'cmake': shutil.which('cmake'),
             'g++': shutil.which('g++') or shutil.which('c++')}
    missing = [name for name, path in tools.items() if not path]
    found = '' if missing else ', '.join(tools)
    return Diagnosis('build tools', found, f'missing {", ".join(missing)}: {SETUP}', needed=False)


def _tool_path() -> str:
    # The virtual environment need not be activated.
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])


def check_osmesa() -> Diagnosis:
    """Return the library for rendering without a GPU."""
    return Diagnosis('libOSMesa', ctypes.util.find_library('OSMesa') or '',
                     'sudo apt-get install libosmesa6', needed=False)


def check_rendering() -> Diagnosis:
    """Render a picture in a process of its own, as a broken driver may take it down."""
    done = subprocess.run(
        [sys.executable, '-c', _RENDER], capture_output=True, text=True, check=False)
    found = f'MuJoCo {_version("mujoco")} renders with {done.stdout.strip()}'
    return Diagnosis('simulated cameras', '' if done.returncode else found,
                     gl_problem(os.environ) or 'install libosmesa6, or set MUJOCO_GL to egl or '
                     'osmesa; needed for the simulated world only', needed=False)


def check_world() -> Diagnosis:
    """Return where the generated assets of the simulated world are."""
    try:
        from vla_policy_node.world.cache import cache_root
    except ValueError as error:  # MUJOCO_GL
        return Diagnosis('world assets', '', str(error), needed=False)
    folders = sorted(cache_root().glob('world-*'))
    return Diagnosis('world assets', str(folders[-1]) if folders else '',
                     'made at the first start of the world', needed=False)


def check_checkpoint() -> Diagnosis:
    """Return where the default checkpoint is."""
    from vla_policy_node.system.files import shipped_checkpoint

    path = shipped_checkpoint()
    return Diagnosis('default checkpoint', str(path) if path.is_dir() else '',
                     'not installed; an untrained one is made at the first `vla bringup`',
                     needed=False)


def check_transport(duration_s: float, say: Callable[[str], None]) -> Diagnosis:
    """Measure whether images of cameras started in this terminal reach our nodes."""
    from vla_policy_node.commands import transport
    from vla_policy_node.system.processes import middleware_environment

    def progress(number: int) -> None:
        say(f'Sending images of two cameras to another process: {number / transport.RATE_HZ:.0f} '
            f'of {duration_s:g} s ...')

    profile = middleware_environment()
    try:
        pairs = transport.measure(duration_s, {}, progress)
        with_profile = None if pairs.enough or not profile else transport.measure(
            duration_s, profile, progress)
    except (transport.TransportError, OSError) as error:
        return Diagnosis('image transport', '', f'not measured: {error}', needed=False)
    remedy = transport.advice()
    if with_profile and with_profile.arrived > pairs.arrived:
        export = ' '.join(f'{name}={path}' for name, path in profile.items())
        remedy = (f'{with_profile} where the sender has the profile of our nodes: start your '
                  f'camera drivers after `export {export}`.')
    return Diagnosis('image transport', str(pairs), remedy, needed=False, sound=pairs.enough)


CHECKS: tuple[Callable[[], Diagnosis], ...] = (
    check_python, check_torch, check_devices, check_bfloat16, check_rclpy, check_environment,
    check_messages, check_bags, check_build_tools, check_osmesa, check_rendering, check_world,
    check_checkpoint,
)
