"""Point the CMake files of the ROS 2 wheels at this interpreter.

The wheels export the include directories of the machine that built them, which stops the build of
every package that depends on `std_msgs`. Two prefixes are wrong: the Python headers and numpy's.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

PREFIX = re.compile(r'/opt/python/cp\d+-cp\d+/include/python3\.\d+')
NUMPY = re.compile(
    r'/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages/numpy/_?core/include')


def main():
    """Rewrite the two prefixes in every exported target below the environment's share/."""
    include = sysconfig.get_paths()['include']
    for path in Path(sys.prefix, 'share').glob('*/cmake/*.cmake'):
        text = path.read_text()
        fixed = PREFIX.sub(include, NUMPY.sub(numpy.get_include(), text))
        if fixed != text:
            path.write_text(fixed)


if __name__ == '__main__':
    main()
