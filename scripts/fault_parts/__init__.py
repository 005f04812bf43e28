"""Parts of the fault campaign, see `scripts/faults.py`."""
