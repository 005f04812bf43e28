"""What all tests share: settings of the numerical libraries and of hypothesis."""

import os

from hypothesis import settings

# Workers of pytest-xdist share the cores, so each gets one thread unless the user says otherwise. Libraries
# read this when they are imported: it stands before any import of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("tests", deadline=None)  # a busy machine answers late
settings.load_profile("tests")
