"""One OpenMP thread per test process: more threads than free cores run many times slower."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of `dying_runs` that nothing happened to."""
    from dying_runs import train

    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder
