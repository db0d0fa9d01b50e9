"""The part `gpu` is skipped where there is no CUDA device."""

import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def cuda():
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
