"""What the Triton kernels compile to, ahead of time and without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Read or write gradients and logits, nearly all of what the ops move: 16 bytes an access.
READS = {
    "_group_sq_norms_kernel",
    "_modality_scores_kernel",
    "_modulate_kernel",
    "_modulate_spread_kernel",
    "_modulate_noise_kernel",
    "_scale_backward_kernel",
    "_group_gram_kernel",
    "_combine_kernel",
    "_cross_entropy_rows_kernel",
    "_cross_entropy_rows_kernel/soft",
    "_cross_entropy_backward_kernel",
    "_cross_entropy_backward_kernel/soft",
    "_modulated_sgd_kernel",
    "_modulated_adam_kernel",
}
WRITES = {
    "_modulate_kernel",
    "_modulate_noise_kernel",
    "_scale_backward_kernel",
    "_combine_kernel",
    "_cross_entropy_backward_kernel",
    "_cross_entropy_backward_kernel/soft",
    "_modulated_sgd_kernel",
    "_modulated_adam_kernel",
}


@pytest.fixture(scope="module", params=[80, 90, 100, 120], ids="sm_{}".format)
def compiled(request):
    """For each kernel and dtype: registers, stack, local memory, wide loads and stores."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("aot_compile.py")
    done = subprocess.run(
        [sys.executable, script, str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_spills(compiled):
    spilled = {name: row for name, row in compiled.items() if row["stack"] + row["local"] > 0}
    assert not spilled


def test_gradients_and_logits_move_by_16_bytes(compiled):
    scalar = [
        f"{name}: {access}"
        for name, row in compiled.items()
        for access, kernels in (("loads", READS), ("stores", WRITES))
        if name.partition("[")[0] in kernels and row[access] == 0
    ]
    assert not scalar
    assert {name.partition("[")[0] for name in compiled} > READS | WRITES
