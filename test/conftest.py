"""Laws are checked on the same examples in every run, however slow the machine is."""

import contextlib

from hypothesis import settings

# Triton comes with torch's CUDA build. Imported after Mesa, which MuJoCo renders with, it crashes
# the process (both bring LLVM); imported before it, it does not.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

settings.register_profile('deterministic', deadline=None, derandomize=True)
settings.load_profile('deterministic')
