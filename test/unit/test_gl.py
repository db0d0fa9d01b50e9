"""Which OpenGL back end draws the simulated cameras: the sentence for one that cannot."""

import pytest

from vla_policy_node.common.gl import default_gl, gl_problem
from vla_policy_node.system.description import describe
from vla_policy_node.system.files import SystemDescriptionError


@pytest.mark.parametrize(('environment', 'cause'), [
    ({'MUJOCO_GL': 'wgl'}, "MUJOCO_GL is 'wgl'"),
    ({'MUJOCO_GL': 'disable'}, 'no camera can be drawn'),
    ({'MUJOCO_GL': 'glfw'}, 'there is none'),
    ({'MUJOCO_GL': 'on'}, 'there is none'),
    ({'PYOPENGL_PLATFORM': 'glx'}, "PYOPENGL_PLATFORM is 'glx'"),
    ({'PYOPENGL_PLATFORM': 'egl', 'MUJOCO_GL': 'osmesa'}, 'with which osmesa cannot draw'),
])
def test_a_back_end_that_cannot_draw_is_one_sentence(environment, cause, monkeypatch):
    problem = gl_problem(environment)
    assert cause in problem and problem.endswith('.') and 'egl or osmesa' in problem
    for name in ('MUJOCO_GL', 'PYOPENGL_PLATFORM', 'DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemDescriptionError, match='egl or osmesa'):
        describe({'world': True})


@pytest.mark.parametrize('environment', [
    {}, {'MUJOCO_GL': 'EGL'}, {'MUJOCO_GL': 'osmesa', 'PYOPENGL_PLATFORM': 'osmesa'},
    {'MUJOCO_GL': 'glfw', 'DISPLAY': ':0'}, {'PYOPENGL_PLATFORM': 'egl'}])
def test_others_are_left_alone(environment):
    assert gl_problem(environment) == ''


def test_what_pyopengl_is_told_decides_where_mujoco_is_told_nothing():
    assert default_gl({'PYOPENGL_PLATFORM': 'egl'}) == 'egl'
    assert default_gl({'PYOPENGL_PLATFORM': 'osmesa'}) == 'osmesa'
