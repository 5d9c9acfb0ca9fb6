"""The layers before the predictions: the first of TinyBERT's two runs."""

from typing import Literal

from pydantic import model_validator

from road_ds.distillation.objective import Loss, Taught, supervised


class LayersAlone(Taught):
    """Nothing but the term between layers; the heads of data sets with teachers stay as they are.

    Phase 2 is a run with another objective on what this one exports.
    """

    objective: Literal["layers"]

    @model_validator(mode="after")
    def layers_are_compared(self):
        if self.compared is None:
            raise ValueError('the objective layers trains by what "layers" says: give its method')
        return self

    def hard_share(self, progress):
        return 0.0

    def of_classes(self, outputs, teachers, labels, progress):
        return Loss(self.of_unlabelled(outputs, teachers, progress), supervised(outputs, labels).total.detach())

    def of_unlabelled(self, outputs, teachers, progress):
        # Without a part in the loss a head's gradient would be one of an earlier step under ZeRO 3.
        return (0.0 * outputs.logits.float().nan_to_num(0.0, 0.0, 0.0)).sum()

    def of_values(self, outputs, teachers, labels, progress):
        return self.of_classes(outputs, teachers, labels, progress)

    def kernel(self, outputs, teachers, labels, progress):
        return None
