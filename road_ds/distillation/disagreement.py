"""How far a student is from its teachers: what text is written to raise (MATE-KD)."""

import torch

from road_ds.distillation.objective import masked
from road_ds.tasks.outputs import Outputs


def disagreement(student: Outputs, teachers: torch.Tensor, kind: str, continuous: bool) -> torch.Tensor:
    """KL(mean of the teachers || student) or their cross-entropy, the mean over rows, with the gradients of both sides.

    teachers: [teachers, rows, classes]; at temperature 1, in float32. For a regression the squared error.
    """
    target = teachers.float().mean(0)
    if continuous:
        return (student.logits.float() - target).square().mean()
    theirs = masked(Outputs(target, student.lengths)).log_softmax(-1)
    own = masked(student).log_softmax(-1)
    absent = theirs.isneginf()  # behind a row's own classes: 0 x inf is to be 0, in the gradient too
    shares, theirs, own = theirs.exp(), theirs.masked_fill(absent, 0.0), own.masked_fill(absent, 0.0)
    return (shares * ((theirs if kind == "kl" else 0.0) - own)).sum(-1).mean()
