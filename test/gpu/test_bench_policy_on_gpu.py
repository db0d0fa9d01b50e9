"""`vla bench policy` on a GPU: every way of running a policy acts like the plain one."""
# ruff: noqa: F811 - fixtures are imported by name

import json

import checkpoint_variants as variants
from rich.console import Console
from small_machine import small_machine  # noqa: F401

from vla_policy_node.bench import policy_run


def test_every_way_of_a_gpu_acts_like_the_plain_one(small_machine, tmp_path):
    sizes = {**variants.CONFIG['text_config'], 'hidden_size': 128, 'intermediate_size': 256}
    directory = variants.make(tmp_path / 'policy', text_config=sizes)
    options = policy_run.Options(
        checkpoint=str(directory), device='cuda', repetitions=2, warm_up=1, pictures=2)
    policy_run.run(options, tmp_path / 'figures.json', None, Console())
    entries = json.loads((tmp_path / 'figures.json').read_text())['contenders']
    assert {'graphs', 'fused', 'plain', 'public structure'} <= {entry['way'] for entry in entries}
    for entry in entries:
        if entry['method'] == 'dense' and entry['dtype'] == 'bfloat16':
            assert entry['action_error']['max'] < 0.05
