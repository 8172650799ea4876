"""Layers that hold cores in the place of weights, call-compatible with the layers of torch that they replace."""

from mpocompress.nn.execution import Execution, set_execution
from mpocompress.nn.linear import MPOLinear
from mpocompress.nn.lstm import MPOLSTM
from mpocompress.nn.lstm_cell import MPOLSTMCell
from mpocompress.nn.weight import MPOWeight

__all__ = ["MPOLSTM", "Execution", "MPOLSTMCell", "MPOLinear", "MPOWeight", "set_execution"]
