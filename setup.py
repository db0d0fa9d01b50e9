from pathlib import Path

from setuptools import find_packages, setup

NAME = 'vla_policy_node'


def files(pattern):
    return sorted(str(path) for path in Path().glob(pattern) if path.is_file())


setup(
    name=NAME,
    version='0.1.0',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['py.typed'], f'{NAME}.bench.faults': ['*.c']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/launch', files('launch/*.launch.py')),
        (f'share/{NAME}/config', files('config/*')),
        (f'share/{NAME}/config/contracts', files('config/contracts/*')),
        (f'share/{NAME}/config/security', files('config/security/*')),
        (f'share/{NAME}/config/training', files('config/training/*')),
        *((f'share/{NAME}/{folder}', files(f'{folder}/*'))
          for folder in sorted(str(path) for path in Path('checkpoints').glob('*'))),
    ],
    install_requires=['setuptools'],
    extras_require={
        'ray': ['ray'],  # `vla replay --ray`
        'dataset': ['pyarrow', 'av'],  # `vla dataset`
    },
    zip_safe=True,
    maintainer='vla_policy_node maintainers',
    maintainer_email='maintainers@vla-policy-node.invalid',
    description='Serves accelerated vision-language-action policies to a robot.',
    license='Apache-2.0',
    python_requires='>=3.10',
    entry_points={
        'console_scripts': [
            'vla = vla_policy_node.cli:main',
            'guard_node = vla_policy_node.nodes.guard_node:main',
            'policy_node = vla_policy_node.nodes.policy_node:main',
            'visualizer_node = vla_policy_node.nodes.visualizer_node:main',
            'recorder_node = vla_policy_node.nodes.recorder_node:main',
            'player_node = vla_policy_node.nodes.player_node:main',
            'world_node = vla_policy_node.nodes.world_node:main',
        ],
    },
)
