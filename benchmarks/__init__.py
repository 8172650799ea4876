"""Measurements that the documentation quotes; none is a test."""
