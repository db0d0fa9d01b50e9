"""Which OpenGL back end draws the simulated cameras, and why one cannot."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes.util import find_library
from pathlib import Path

_GPU_NODES = ('/dev/nvidia0', '/dev/dri/renderD128')
_HIDDEN = ('egl', 'osmesa')  # need no screen
_WINDOWED = ('glfw', 'glx')  # draw on a screen
_ON, _OFF = ('enable', 'enabled', 'on', 'true', '1'), ('disable', 'disabled', 'off', 'false', '0')


def default_gl(environment: Mapping[str, str]) -> str:
    """Return the back end for an environment that names none in MUJOCO_GL.

    The one that PyOpenGL is told to use; else OSMesa where it is installed and there is no GPU.
    """
    if (named := environment.get('PYOPENGL_PLATFORM', '').lower()) in _HIDDEN:
        return named
    has_gpu = any(Path(node).exists() for node in _GPU_NODES)
    return 'osmesa' if find_library('OSMesa') and not has_gpu else 'egl'


def is_known_gl(name: str) -> bool:
    """Whether MuJoCo can be imported with it as MUJOCO_GL."""
    return name.lower().strip() in (*_HIDDEN, *_WINDOWED, *_ON, *_OFF)


def gl_problem(environment: Mapping[str, str]) -> str:
    """Return one sentence if the environment names a back end that cannot draw here, else ''."""
    named = environment.get('MUJOCO_GL', '').lower().strip()
    back_end = named or default_gl(environment)
    works = 'unset it, or take egl or osmesa'
    if back_end not in (*_HIDDEN, *_WINDOWED, *_ON):
        return f"MUJOCO_GL is '{named}', with which no camera can be drawn; {works}."
    if back_end in (*_WINDOWED, *_ON) and not (
            environment.get('DISPLAY') or environment.get('WAYLAND_DISPLAY')):
        return f"MUJOCO_GL is '{named}', which draws on a screen, and there is none; {works}."
    platform = environment.get('PYOPENGL_PLATFORM', '')
    if back_end in _HIDDEN and platform and platform.lower() != back_end:
        return (f"PYOPENGL_PLATFORM is '{platform}', with which {back_end} cannot draw; unset it, "
                'or set both MUJOCO_GL and PYOPENGL_PLATFORM to egl or osmesa.')
    return ''
