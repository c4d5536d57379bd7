"""What a backend is: a module with these functions. An op has one name and one meaning in all.

Every tensor that reaches a backend is strided, dense and without overlaps: ``modgrad.ops`` sees to
it.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# What both updates end in: where weights act, what is read on the device, and a rule that finds
# the weights from this step's squared norms, and writes them.
_UPDATE_OPTIONS = (
    " bool maximize, bool scale_update=False, Tensor? lr_tensor=None, Tensor? grad_scale=None,"
    " Tensor? found_inf=None, Tensor? noise=None, Tensor? seed=None, int[]? stream=None,"
    " Tensor(z!)? sq_norms=None, str? rule=None, float[]? parameters=None) -> ()"
)

# The torch schema of every op, once; registered as modgrad_<backend>::<op>.
SCHEMAS = {
    "group_sq_norms": "(Tensor[] tensors, int[] group, int num_groups) -> Tensor",
    "modulate_": (
        "(Tensor(a!)[] grads, int[] group, Tensor weights, Tensor? noise=None, Tensor? seed=None)"
        " -> ()"
    ),
    "modality_scores": "(Tensor[] logits, Tensor targets) -> Tensor",
    "scale_backward": "(Tensor[] grads, Tensor weights) -> Tensor[]",
    # grads[i] is the gradient of loss[i] in parameter tensor[i], which is in group[tensor[i]]
    "group_gram": (
        "(Tensor[] grads, int[] tensor, int[] loss, int[] group, int num_groups, int num_losses)"
        " -> Tensor"
    ),
    "combine_": (
        "(Tensor(a!)[] out, Tensor[] grads, int[] tensor, int[] loss, int[] group, Tensor weights)"
        " -> ()"
    ),
    # statistic: scores [M] in float32, or a gram [M, K, K] in float64; weights and next: float32
    # [M, K], [S, K]; S states of the rule, [K] each, are next after this step
    "rule_weights": (
        "(Tensor statistic, str rule, float[] parameters, Tensor? losses, Tensor[] states)"
        " -> (Tensor weights, Tensor next)"
    ),
    # group_gram, rule_weights, combine_; no grads: those of one loss are `out`, scaled in place
    "balance_": (
        "(Tensor(a!)[] out, Tensor[] grads, int[] tensor, int[] loss, int[] group, int num_groups,"
        " int num_losses, str rule, float[] parameters, Tensor? losses, Tensor[] states)"
        " -> (Tensor gram, Tensor weights, Tensor next)"
    ),
    # q_bc = w_c ((1 - s) t_bc + s / C) is what class c of sample b weighs, 0 in a sample left out;
    # lse [M, B]: log sum_c exp(logits), mass [B + 1]: sum_c q_bc, and what the means divide by;
    # weights: float32 [M], by a rule of the scores from number num_joint on, 1 before; [0] without
    "modality_cross_entropy": (
        "(Tensor[] logits, Tensor targets, Tensor? class_weights, int ignore_index,"
        " float label_smoothing, str? rule=None, float[]? parameters=None, int num_joint=0)"
        " -> (Tensor losses, Tensor scores, Tensor lse, Tensor mass, Tensor weights)"
    ),
    # logits[i] are those of loss[i]
    "modality_cross_entropy_backward": (
        "(Tensor[] logits, int[] loss, Tensor targets, Tensor? class_weights, int ignore_index,"
        " float label_smoothing, Tensor lse, Tensor mass, Tensor grad_losses, Tensor? weights)"
        " -> Tensor[]"
    ),
    # group -1: shared. No momentum_buffers: no momentum. lr_tensor stands in for lr.
    "modulated_sgd_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, int[] group,"
        " Tensor(w!) weights, float lr, float momentum, float dampening, float weight_decay,"
        " bool nesterov, bool is_first_step," + _UPDATE_OPTIONS
    ),
    # No max_exp_avg_sqs: no amsgrad. decoupled: AdamW.
    "modulated_adam_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
        " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] state_steps, int[] group, Tensor(w!) weights,"
        " float lr, float beta1, float beta2, float eps, float weight_decay, bool decoupled,"
        + _UPDATE_OPTIONS
    ),
}


class Backend(Protocol):
    """Implementations of the ops for the devices on which ``unusable`` returns None."""

    def unusable(self, device: torch.device) -> str | None:
        """Why this backend cannot run on ``device``, or None where it can."""

    def group_sq_norms(
        self, tensors: Sequence[Tensor], group: Sequence[int], num_groups: int
    ) -> Tensor: ...

    def modulate_(
        self,
        grads: Sequence[Tensor],
        group: Sequence[int],
        weights: Tensor,
        noise: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> None: ...

    def modality_scores(self, logits: Sequence[Tensor], targets: Tensor) -> Tensor: ...

    def scale_backward(self, grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]: ...

    def group_gram(
        self,
        grads: Sequence[Tensor],
        tensor: Sequence[int],
        loss: Sequence[int],
        group: Sequence[int],
        num_groups: int,
        num_losses: int,
    ) -> Tensor: ...

    def combine_(
        self,
        out: Sequence[Tensor],
        grads: Sequence[Tensor],
        tensor: Sequence[int],
        loss: Sequence[int],
        group: Sequence[int],
        weights: Tensor,
    ) -> None: ...

    def rule_weights(
        self,
        statistic: Tensor,
        rule: str,
        parameters: Sequence[float],
        losses: Tensor | None,
        states: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]: ...

    def balance_(
        self,
        out: Sequence[Tensor],
        grads: Sequence[Tensor],
        tensor: Sequence[int],
        loss: Sequence[int],
        group: Sequence[int],
        num_groups: int,
        num_losses: int,
        rule: str,
        parameters: Sequence[float],
        losses: Tensor | None,
        states: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def modality_cross_entropy(
        self,
        logits: Sequence[Tensor],
        targets: Tensor,
        class_weights: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        rule: str | None = None,
        parameters: Sequence[float] | None = None,
        num_joint: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...

    def modality_cross_entropy_backward(
        self,
        logits: Sequence[Tensor],
        loss: Sequence[int],
        targets: Tensor,
        class_weights: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        lse: Tensor,
        mass: Tensor,
        grad_losses: Tensor,
        weights: Tensor | None,
    ) -> list[Tensor]: ...

    def modulated_sgd_(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        momentum_buffers: Sequence[Tensor],
        group: Sequence[int],
        weights: Tensor,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
        is_first_step: bool,
        maximize: bool,
        scale_update: bool = False,
        lr_tensor: Tensor | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        noise: Tensor | None = None,
        seed: Tensor | None = None,
        stream: Sequence[int] | None = None,
        sq_norms: Tensor | None = None,
        rule: str | None = None,
        parameters: Sequence[float] | None = None,
    ) -> None: ...

    def modulated_adam_(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor],
        state_steps: Sequence[Tensor],
        group: Sequence[int],
        weights: Tensor,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
        maximize: bool,
        scale_update: bool = False,
        lr_tensor: Tensor | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        noise: Tensor | None = None,
        seed: Tensor | None = None,
        stream: Sequence[int] | None = None,
        sq_norms: Tensor | None = None,
        rule: str | None = None,
        parameters: Sequence[float] | None = None,
    ) -> None: ...
