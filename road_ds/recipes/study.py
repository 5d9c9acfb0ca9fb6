"""The trials of a sweep on disk: an Optuna study in an SQLite file. What is drawn depends on seed, number and finished trials."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from road_ds.common.digest import text_sha256
from road_ds.common.errors import RoadError, first_line
from road_ds.recipes.inputs import differences
from road_ds.recipes.sweep import Prune, Range, Sweep, Values

FILE = "study.db"
BY_RULE, DRAWS = 20, 1000  # draws by Optuna's rule, and by chance behind them, until one has not been tried
IDENTITY, WHY = "identity", "why"  # attributes of the study, of a trial


def optuna() -> Any:
    """The library. RoadError where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise RoadError(
            f"sweep searches with Optuna, and {error.name} is not installed: pip install -c constraints.txt -e '.[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return optuna


class Study:
    """The trials so far, and the one at work. `trials` are Optuna's own records."""

    def __init__(self, output: Path, sweep: Sweep, identity: Mapping[str, Any]):
        """Opens the study of an output folder, or makes it. RoadError where it is of something else.

        identity: what the trials are made from, by a name that people understand.
        """
        self.library = optuna()
        self.sweep, self.file = sweep, output / FILE
        self.space = {key: self._distribution(among) for key, among in sweep.search.items()}
        with self.readable():
            self.storage = self.library.storages.RDBStorage(f"sqlite:///{self.file}")
            self.study = self.library.create_study(
                storage=self.storage, study_name="sweep", direction="maximize", load_if_exists=True
            )
            before = self.study.user_attrs.get(IDENTITY)
            if before is None:
                self.study.set_user_attr(IDENTITY, dict(identity))
        if before is not None and (changed := differences(before, dict(identity))):
            raise RoadError(
                f"{output} holds a sweep of something else:\n  "
                + "\n  ".join(changed)
                + "\nset it back, or use another --output"
            )

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turns a file that cannot be read or written into an error that says so."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, self.library.exceptions.StorageInternalError) as error:
            raise RoadError(
                f"{self.file}: cannot be read or written ({first_line(error.__cause__ or error)}): free space, or move it away: "
                "trials that are done are then found in their folders"
            ) from None

    def _distribution(self, among: Any) -> Any:
        kinds = self.library.distributions
        if not isinstance(among, Range):
            return kinds.CategoricalDistribution([json.dumps(choice) for choice in among])
        if among.whole:
            return kinds.IntDistribution(int(among.low), int(among.high), log=among.log, step=int(among.step or 1))
        return kinds.FloatDistribution(float(among.low), float(among.high), log=among.log, step=among.step)

    @property
    def trials(self) -> list[Any]:
        """All trials, by number."""
        return self.study.trials

    def values(self, trial: Any) -> Values:
        """What a trial's settings are."""
        return {
            key: value if isinstance(self.sweep.search[key], Range) else json.loads(value)
            for key, value in trial.params.items()
        }

    def open_trial(self) -> Any | None:
        """The trial at work, the next where there is none; None where there are as many as asked for, or nothing is untried."""
        trials = self.trials
        if trials and not trials[-1].state.is_finished():
            return trials[-1]
        if len(trials) >= self.sweep.trials or (params := self._drawn(trials)) is None:
            return None
        kinds = self.library.trial
        self.study.add_trial(
            kinds.create_trial(state=kinds.TrialState.RUNNING, params=params, distributions=self.space)
        )
        return self.trials[-1]

    def _drawn(self, trials: list[Any]) -> dict[str, Any] | None:
        """The next trial's parameters. Drawn in a copy: one killed between two parameters would leave half a trial."""
        samplers = self.library.samplers
        copy = self.library.create_study(direction="maximize")
        copy.add_trials(trials)
        tried = [trial.params for trial in trials]
        for attempt in range(DRAWS):
            key = text_sha256(f"{self.sweep.seed}/{len(trials)}/{attempt}")
            kind = samplers.TPESampler if attempt < BY_RULE else samplers.RandomSampler
            copy.sampler = kind(seed=int(key[:8], 16))
            params = copy.ask(self.space).params
            if params not in tried:
                return params
        return None

    def hopeless(self, trial: Any, scores: Mapping[int, float], prune: Prune) -> bool:
        """Whether a trial with these scores by step is to be stopped: at one, below the median of finished ones there."""
        own = self._id(trial)
        known = self.storage.get_trial(own).intermediate_values
        pruner = self.library.pruners.MedianPruner(n_startup_trials=prune.trials, n_warmup_steps=prune.steps)
        for step in sorted(scores):  # each is judged as it came, whenever it is seen
            if step not in known:
                self.storage.set_trial_intermediate_value(own, step, scores[step])
            if step >= max(known, default=0) and pruner.prune(self.study, self.storage.get_trial(own)):
                return True
        return False

    def _id(self, trial: Any) -> int:
        """What the storage calls a trial."""
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, trial.number)

    def end(self, trial: Any, state: str, score: float | None = None, why: str = "") -> None:
        """Keeps how a trial ended: COMPLETE with its score, PRUNED, or FAIL with the reason."""
        self.storage.set_trial_user_attr(self._id(trial), WHY, why)
        self.study.tell(trial.number, score, state=self.library.trial.TrialState[state])

    def best(self) -> Any | None:
        """The trial with the highest score, the first of several; None where none has finished."""
        finished = [trial for trial in self.trials if trial.state.name == "COMPLETE"]
        return max(finished, key=lambda trial: trial.value, default=None)
