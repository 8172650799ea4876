"""Calibration: running the user's model on example inputs to measure the metric of every weight matrix.

Collects second moments of inputs and output gradients, compares model outputs, and refits cores layer by layer.
"""
