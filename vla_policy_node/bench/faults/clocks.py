"""Steps the system clock as a single process sees it, through a preloaded library."""

import mmap
import struct
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name('clock_shim.c')


class WallClock:
    """The system clock, with an offset that faults may step. The interface of `trial.Clock`."""

    def __init__(self):
        self._offset_ns = 0

    def ns(self, steady_s: float) -> int:
        """Return what it shows now."""
        return time.time_ns() + self._offset_ns

    def set(self, steady_s: float, step_s: float = 0.0, rate: float = 1.0) -> None:
        """Step it; it runs at no other rate than that of the machine."""
        self._offset_ns += round(step_s * 1e9)


class ShimmedClock(WallClock):
    """The system clock of processes that are started with `environment`.

    folder: for the library, which is compiled there. Raises RuntimeError without a compiler.
    """

    def __init__(self, folder: Path):
        super().__init__()
        library, self._path = folder / 'clock_shim.so', folder / 'clock_offset'
        self._path.write_bytes(bytes(8))
        done = subprocess.run(
            ['cc', '-shared', '-fPIC', '-O1', '-o', str(library), str(SOURCE)],
            capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'The clock shim does not compile: {done.stderr}')
        with self._path.open('r+b') as file:
            self._page = mmap.mmap(file.fileno(), 8)
        self.environment = {'LD_PRELOAD': str(library), 'VLA_CLOCK_OFFSET': str(self._path)}

    def set(self, steady_s: float, step_s: float = 0.0, rate: float = 1.0) -> None:
        """Step the clock of those processes."""
        super().set(steady_s, step_s, rate)
        struct.pack_into('<q', self._page, 0, self._offset_ns)
