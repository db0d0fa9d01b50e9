"""The LIBERO world on MuJoCo, with generated assets.

MuJoCo reads `MUJOCO_GL` when it is first imported, so the choice is made here, before any module
of this package imports it: what the environment says, else OSMesa where it is installed and there
is no GPU, else EGL.
"""

import contextlib
import os
from ctypes.util import find_library
from pathlib import Path

_GPU_NODES = ('/dev/nvidia0', '/dev/dri/renderD128')

if not os.environ.get('MUJOCO_GL'):
    has_gpu = any(Path(node).exists() for node in _GPU_NODES)
    os.environ['MUJOCO_GL'] = 'osmesa' if find_library('OSMesa') and not has_gpu else 'egl'

# torch's CUDA build brings triton. Imported after OSMesa it crashes the process (both bring LLVM);
# imported before, it does not.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
