"""A network whose branches gate each other: what conditional learning speed is about."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import modgrad
from modgrad.demo.network import CLASSES, FIRST_STRIDE, MODALITIES, WIDTHS, block


class CrossModalNetwork(nn.Module):
    """A branch and a head per modality, with a transfer module after the last two blocks."""

    def __init__(self) -> None:
        super().__init__()
        stages = zip((1, *WIDTHS), WIDTHS, strict=False)
        blocks = [
            {name: block(i, o, FIRST_STRIDE[name] if i == 1 else 2) for name in MODALITIES}
            for i, o in stages
        ]
        self.blocks = nn.ModuleList(nn.ModuleDict(stage) for stage in blocks)
        self.transfer = nn.ModuleList(
            modgrad.MMTM(dict.fromkeys(MODALITIES, width)) for width in WIDTHS[1:]
        )
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTHS[-1], CLASSES) for name in MODALITIES})

    def modalities(self) -> modgrad.Modalities:
        """Branches, what feeds each of them from the other, and what serves both."""
        groups = {name: [f"blocks.*.{name}.*", f"heads.{name}.*"] for name in MODALITIES}
        fusion = {f"{name}_fusion": f"transfer.*.excite.{name}.*" for name in MODALITIES}
        return modgrad.Modalities(self, **groups, **fusion, squeeze="transfer.*.squeeze.*")

    def forward(
        self, inputs: Mapping[str, Tensor], branch: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits by branch; ``branch`` is the one that does not see the other."""
        maps = dict(inputs)
        for i, stage in enumerate(self.blocks):
            maps = {name: stage.get_submodule(name)(maps[name]) for name in MODALITIES}
            if i > 0:
                maps = self.transfer[i - 1](maps, branch)
        return {name: self.heads[name](maps[name].mean((2, 3))) for name in MODALITIES}

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The joint logits, and those of each branch without the other."""
        joint = torch.stack(list(self(inputs).values())).mean(0)
        alone = {
            name: self(inputs, torch.tensor(i, device=joint.device))[name]
            for i, name in enumerate(MODALITIES)
        }
        return {"joint": joint, **alone}
