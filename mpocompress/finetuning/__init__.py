"""Fine-tuning of compressed checkpoints towards the outputs of the dense model.

`finetune` trains a model in memory, `finetune_file` a compressed file; both share one trainer, with snapshots to resume
from and distributed training.
"""

from mpocompress.finetuning.autotune import Trial
from mpocompress.finetuning.data import Feed, example
from mpocompress.finetuning.distributed import Team, leads, team
from mpocompress.finetuning.evaluation import Judge, Score
from mpocompress.finetuning.objective import LossFunction, Objective, objective_for
from mpocompress.finetuning.precision import Precision, Way, from_cores, from_words
from mpocompress.finetuning.recipe import Recipe, named_thing
from mpocompress.finetuning.recurrent_state import Carrier
from mpocompress.finetuning.reporting import half_notes, reported
from mpocompress.finetuning.schedule import Length
from mpocompress.finetuning.self_generated import Generated, SelfGenerated
from mpocompress.finetuning.settings import FinetuneProgress, Settings, Trace, Trained
from mpocompress.finetuning.snapshot import read_snapshot
from mpocompress.finetuning.train_mode import Modes
from mpocompress.finetuning.trainer import Run, trained_parameters

__all__ = [
    "Carrier",
    "Feed",
    "FinetuneProgress",
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
