"""Fine-tuning: the loop, what is minimised in it, and what it needs to go on after a stop."""

from mpocompress.tuning.carrying import Carrier
from mpocompress.tuning.feed import Feed, example
from mpocompress.tuning.generating import Generated, SelfGenerated
from mpocompress.tuning.judging import Judge, Score
from mpocompress.tuning.modes import Modes
from mpocompress.tuning.objective import LossFunction, Objective, objective_for
from mpocompress.tuning.recipe import Recipe, named_thing
from mpocompress.tuning.reporting import half_notes, reported
from mpocompress.tuning.schedule import Length
from mpocompress.tuning.settings import Settings, Trace, Trained, TuningProgress
from mpocompress.tuning.snapshots import read_snapshot
from mpocompress.tuning.teammates import Team, leads, team
from mpocompress.tuning.training import Run, trained_parameters
from mpocompress.tuning.trial import Trial
from mpocompress.tuning.way import Precision, Way, from_cores, from_words

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
    "Recipe",
    "Run",
    "Score",
    "SelfGenerated",
    "Settings",
    "Team",
    "Trace",
    "Trained",
    "Trial",
    "TuningProgress",
    "Way",
    "example",
    "from_cores",
    "from_words",
    "half_notes",
    "leads",
    "named_thing",
    "objective_for",
    "read_snapshot",
    "reported",
    "team",
    "trained_parameters",
]
