"""The LIBERO world on MuJoCo, with generated assets.

MuJoCo reads `MUJOCO_GL` when it is first imported, so the choice is made here, before any module
of this package imports it, see `common.gl`.
"""

import contextlib
import os

from vla_policy_node.common.gl import default_gl, is_known_gl

if not os.environ.get('MUJOCO_GL'):
    os.environ['MUJOCO_GL'] = default_gl(os.environ)
if not is_known_gl(os.environ['MUJOCO_GL']):
    raise ValueError(f"MUJOCO_GL is '{os.environ['MUJOCO_GL']}', which is no back end of MuJoCo; "
                     'unset it, or take egl or osmesa.')

# torch's CUDA build brings triton. Imported after OSMesa it crashes the process (both bring LLVM);
# imported before, it does not.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
