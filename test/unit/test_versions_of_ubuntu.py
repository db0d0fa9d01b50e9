"""Nothing that Ubuntu 24.04's matplotlib 3.6 and numpy 1.26 lack; requirements/noble.txt has them.

The workflow runs the tests with those versions. Here only names are looked at: those that came
later and are easily written by somebody who has the lock's versions.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / 'vla_policy_node'
NUMPY_2 = {
    '_core', 'acos', 'acosh', 'asin', 'asinh', 'astype', 'atan', 'atan2', 'atanh', 'bitwise_count',
    'bitwise_invert', 'bitwise_left_shift', 'bitwise_right_shift', 'concat', 'cumulative_prod',
    'cumulative_sum', 'isdtype', 'long', 'matrix_transpose', 'matvec', 'permute_dims', 'pow',
    'strings', 'trapezoid', 'ulong', 'unique_all', 'unique_counts', 'unique_inverse',
    'unique_values', 'unstack', 'vecdot', 'vecmat',
}


def later_names(source):
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                and node.value.id == 'np' and node.attr in NUMPY_2):
            yield f'line {node.lineno}: np.{node.attr} is of numpy 2'
        if (isinstance(node, ast.keyword) and node.arg == 'loc'
                and isinstance(node.value, ast.Constant)
                and str(node.value.value).startswith('outside')):
            yield f'line {node.value.lineno}: loc={node.value.value!r} is of matplotlib 3.7'


def test_later_names_are_found():
    assert len([*later_names("np._core.x\nfigure.legend(loc='outside upper center')")]) == 2


def test_the_package_uses_no_names_that_came_later():
    found = {str(path.relative_to(PACKAGE)): names for path in PACKAGE.rglob('*.py')
             if (names := [*later_names(path.read_text(encoding='utf-8'))])}
    assert not found
