"""Reading and writing checkpoints.

The format of a file is recognised by its content. Tensors are read lazily and no code from the file is executed. A file
is written completely or not at all.
"""

from mpocompress.checkpoint.contents.extras import restore, state_extras
from mpocompress.checkpoint.in_memory import open_state
from mpocompress.checkpoint.output import FOLDER, Output, container_for
from mpocompress.checkpoint.protocol import SAFETENSORS, TORCH_ZIP, Checkpoint, TensorInfo
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.sniff import Form, sniff
from mpocompress.checkpoint.writing.atomic import replacing
from mpocompress.checkpoint.writing.in_place import write_like
from mpocompress.checkpoint.writing.spool import Spool, Spooled
from mpocompress.checkpoint.writing.writer import check_output, left_out, write_checkpoint

__all__ = [
    "FOLDER",
    "SAFETENSORS",
    "TORCH_ZIP",
    "Checkpoint",
    "Form",
    "Output",
    "Spool",
    "Spooled",
    "TensorInfo",
    "check_output",
    "container_for",
    "left_out",
    "open_checkpoint",
    "open_state",
    "replacing",
    "restore",
    "sniff",
    "state_extras",
    "write_checkpoint",
    "write_like",
]
