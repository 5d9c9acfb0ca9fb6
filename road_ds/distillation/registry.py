"""The objectives by name. A new one is a class in a file beside this one and a line here."""

from collections.abc import Mapping

from road_ds.common.errors import RoadError, nearest
from road_ds.common.strict_json import quote
from road_ds.config.road import RoadConfig
from road_ds.config.settings import validated
from road_ds.distillation.adversarial import Adversarial
from road_ds.distillation.annealing import AnnealingKD, TeacherAnnealing
from road_ds.distillation.intermediate import LayersAlone
from road_ds.distillation.kd import KD, WeightedKD
from road_ds.distillation.neighbours import NeighbourKD
from road_ds.distillation.objective import Objective, Taught
from road_ds.distillation.smoothing import LabelSmoothing, TeacherFree
from road_ds.distillation.teachers import SOURCES

OBJECTIVES: dict[str, type[Objective]] = {
    "kd": KD,
    "weighted_kd": WeightedKD,
    "teacher_annealing": TeacherAnnealing,
    "annealing_kd": AnnealingKD,
    "layers": LayersAlone,
    "label_smoothing": LabelSmoothing,
    "teacher_free": TeacherFree,
}


def objective_from(config: RoadConfig) -> Objective:
    """The objective of a run: hard labels, or what `road.distill` says. RoadError for what does not hold there."""
    block = config.distill
    if block is None:
        return Objective()
    kind = block.get("objective")
    if not isinstance(kind, str) or kind not in OBJECTIVES:
        came = f"got {quote(kind)}{nearest(str(kind), OBJECTIVES)}" if "objective" in block else "is required"
        raise RoadError(f"road.distill.objective: {came}; allowed: {', '.join(OBJECTIVES)}")
    objective = validated(OBJECTIVES[kind], block, "road.distill")
    if isinstance(objective, Taught):
        if objective.source not in SOURCES:
            raise RoadError(
                f"road.distill.source: got {quote(objective.source)}{nearest(objective.source, SOURCES)}; allowed: "
                f"{', '.join(SOURCES)}"
            )
        if not objective.teachers and objective.source != "average":
            needed = f"{kind} needs a teacher for at least one data set of the run (road.use leaves the others out)"
            raise RoadError(f"road.distill.teachers: {needed if 'teachers' in block else 'is required'}")
        for dataset, names in objective.teachers.items():
            if dataset not in config.datasets:
                raise RoadError(
                    f"road.distill.teachers.{dataset}: no such data set in road.datasets{nearest(dataset, config.datasets)}"
                )
            if len(set(names)) < len(names):
                raise RoadError(f"road.distill.teachers.{dataset}: a teacher is named twice: {', '.join(names)}")
            objective.fits(dataset, len(names))
        for dataset in objective.neighbours:
            if dataset not in (known := objective.teachers or config.datasets):
                raise RoadError(
                    f"road.distill.neighbours.{dataset}: no data set with teachers, which say what a text without a label "
                    f"means{nearest(dataset, known)}"
                )
    return objective


def neighbours_of(objective: Objective) -> Mapping[str, NeighbourKD]:
    """The settings of neighbours by data set; empty for an objective without."""
    return objective.neighbours if isinstance(objective, Taught) else {}


def adversarial_of(objective: Objective) -> Adversarial | None:
    """The settings of generated text; None for an objective without."""
    return objective.adversarial if isinstance(objective, Taught) else None


def teachers_of(objective: Objective) -> Mapping[str, list[str]]:
    """The teachers by data set; empty for an objective without."""
    return objective.teachers if isinstance(objective, Taught) else {}
