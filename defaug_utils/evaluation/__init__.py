"""Classifiers, detectors, and the numbers that they and the pools get."""
