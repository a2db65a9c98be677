"""For tests that compare runs bit for bit."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """One thread of torch's: sums of several come in no fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
