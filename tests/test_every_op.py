"""What holds of every op on every device."""

import calls
import pytest
import torch
from calls import assert_same_bits, clones


@pytest.mark.parametrize("name", calls.NAMES)
def test_same_bits_on_every_run(backend, device, name):
    call = calls.calls(device, backend)[name]
    before = torch.get_num_threads()
    first = clones(call.run(clones(call.inputs)))
    # torch's own sums, of which the reference is made, depend on the threads
    for threads in (before, before) if backend == "reference" else (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found = call.run(clones(call.inputs))
        finally:
            torch.set_num_threads(before)
        assert_same_bits(found, first)
