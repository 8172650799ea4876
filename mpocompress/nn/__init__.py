"""Layers that hold MPO cores in place of dense weights.

`MPOLinear`, `MPOLSTM` and `MPOLSTMCell` take the arguments and return the outputs of the torch layers they replace.
They run from the cores or from the materialised weight, whichever is faster. The choices measured in `execution` are
shared by all layers of the process, under a lock.
"""

from mpocompress.nn.execution import Execution
from mpocompress.nn.layer import set_execution
from mpocompress.nn.linear import MPOLinear
from mpocompress.nn.lstm import MPOLSTM
from mpocompress.nn.lstm_cell import MPOLSTMCell
from mpocompress.nn.weight import MPOWeight

__all__ = ["MPOLSTM", "Execution", "MPOLSTMCell", "MPOLinear", "MPOWeight", "set_execution"]
