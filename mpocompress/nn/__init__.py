"""Layers that hold MPO cores in place of dense weights.

`MPOLinear`, `MPOLSTM` and `MPOLSTMCell` take the arguments and return the outputs of the torch layers they replace.
They run from the cores or from the materialised weight; `execution` and `cost` choose the faster one, and its
measured choices are shared by all layers of the process, under a lock. An LSTM runs level by level (`level`), in one
direction at a time (`direction`): with gradients in `recurrence`, without in `inference_loop`, one step in
`single_step`.
"""

from mpocompress.nn.execution import Execution
from mpocompress.nn.layer import set_execution
from mpocompress.nn.linear import MPOLinear
from mpocompress.nn.lstm import MPOLSTM
from mpocompress.nn.lstm_cell import MPOLSTMCell
from mpocompress.nn.weight import MPOWeight

__all__ = ["MPOLSTM", "Execution", "MPOLSTMCell", "MPOLinear", "MPOWeight", "set_execution"]
