"""What the classes of a sample weigh in its cross entropy: q_bc = w_c ((1 - s) t_bc + s / C).

SOFT: the targets are probabilities t [B, C], not classes [B]. WEIGHTED: there are w [C]. SMOOTHING:
s. All known when a kernel is compiled: what is not there costs nothing, and s keeps its float64.
"""
# mypy: allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def counts(
    targets: tl.tensor, b: tl.tensor, ignore_index: tl.tensor, SOFT: tl.constexpr
) -> tl.tensor:
    """Whether sample b is not left out."""
    kept = b >= 0
    if not SOFT:
        kept = tl.load(targets + b) != ignore_index
    return kept


@triton.jit
def peak_mass(
    targets: tl.tensor,
    class_weights: tl.tensor,
    b: tl.tensor,
    num_classes: tl.tensor,
    SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The true class (-1 with probabilities) and the mass that it alone has; NaN outside [0, C)."""
    true_class = tl.full((), -1, tl.int64)
    mass = tl.zeros((), tl.float64)
    if not SOFT:
        true_class = tl.load(targets + b)
        is_class = (true_class >= 0) & (true_class < num_classes)
        mass = tl.where(is_class, 1 - SMOOTHING + mass, float("nan"))
        if WEIGHTED:
            weight = tl.load(class_weights + true_class, mask=is_class, other=float("nan"))
            mass *= weight.to(tl.float64)
    return true_class, mass


@triton.jit
def probability(
    targets: tl.tensor, b: tl.tensor, c: tl.tensor, num_classes: tl.tensor, WIDE: tl.constexpr
) -> tl.tensor:
    """t_bc, 0 from C on."""
    return tl.load(targets + b * num_classes + c, mask=c < num_classes, other=0.0).to(WIDE)


@triton.jit
def spread_mass(
    targets: tl.tensor,
    class_weights: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    num_classes: tl.tensor,
    WIDE: tl.constexpr,
    SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
) -> tl.tensor:
    """The mass of classes c without the peak of a true one; 0 from C on."""
    mass = tl.where(c < num_classes, SMOOTHING / num_classes.to(WIDE), 0.0).to(WIDE)
    if SOFT:
        mass += (1 - SMOOTHING) * probability(targets, b, c, num_classes, WIDE)
    if WEIGHTED:
        mass *= tl.load(class_weights + c, mask=c < num_classes, other=0.0).to(WIDE)
    return mass
