"""Calibration: the user's model run on the user's inputs, and what that says about every weight."""

from mpocompress.calibration.calibration import Calibration, CalibrationInputs
from mpocompress.calibration.keeping import check_calibration_file, read_calibration, write_calibration
from mpocompress.calibration.making import CalibrationSource, calibrated, calibration_for

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
