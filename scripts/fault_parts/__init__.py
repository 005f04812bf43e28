"""The parts of the campaign that looks for faults, see `scripts/faults.py`."""
