"""What tests of deformable attention change of the process is put back."""

import pytest
import torch

from dndetr.models import native


@pytest.fixture
def restored():
    choice, threads = native.chosen(), torch.get_num_threads()
    yield
    native.choose(choice)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
