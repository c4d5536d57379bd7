"""Which ops torch's dispatcher sees."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

# what makes the host wait for a device
READS = ("aten::_local_scalar_dense", "aten::nonzero")


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))

    @property
    def count(self):
        return Counter(self.names)

    @property
    def reads(self):
        return sum(self.count[name] for name in READS)

    @property
    def own(self):
        """Those of modgrad; an op of retained lists is that op, and to retain them is none."""
        names = [name.split("::")[1] for name in self.names if name.startswith("modgrad_")]
        return [name.replace("_retained_", "_") for name in names if name != "retain"]
