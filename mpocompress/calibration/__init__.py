"""Calibration: running the user's model on example inputs to measure what every weight matrix receives.

Collects second moments of inputs and output gradients, compares model outputs, and refits cores layer by layer.
"""

from mpocompress.calibration.calibrate import CalibrationSource, calibrated, calibration_for
from mpocompress.calibration.calibration import Calibration, CalibrationInputs
from mpocompress.calibration.file import check_calibration_file, read_calibration, write_calibration

__all__ = [
    "Calibration",
    "CalibrationInputs",
    "CalibrationSource",
    "calibrated",
    "calibration_for",
    "check_calibration_file",
    "read_calibration",
    "write_calibration",
]
