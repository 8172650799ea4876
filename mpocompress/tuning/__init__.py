"""Fine-tuning: the loop, what is minimised in it, and what it needs to go on after a stop."""

from mpocompress.tuning.carrying import Carrier
from mpocompress.tuning.feed import Feed, example
from mpocompress.tuning.generating import Generated, SelfGenerated
from mpocompress.tuning.judging import Judge, Score
from mpocompress.tuning.modes import Modes
from mpocompress.tuning.objective import LossFunction, Objective, objective_for
from mpocompress.tuning.schedule import Length
from mpocompress.tuning.settings import Settings, Trace, Trained, TuningProgress
from mpocompress.tuning.snapshots import read_snapshot
from mpocompress.tuning.teammates import Team, leads, team
from mpocompress.tuning.training import Run, loss_of, trained_parameters
from mpocompress.tuning.trial import Precision, Way, fastest, from_cores

__all__ = [
    "Carrier",
    "Feed",
    "Generated",
    "Judge",
    "Length",
    "LossFunction",
    "Modes",
    "Objective",
    "Precision",
    "Run",
    "Score",
    "SelfGenerated",
    "Settings",
    "Team",
    "Trace",
    "Trained",
    "TuningProgress",
    "Way",
    "example",
    "fastest",
    "from_cores",
    "leads",
    "loss_of",
    "objective_for",
    "read_snapshot",
    "team",
    "trained_parameters",
]
