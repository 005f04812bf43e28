"""The parts of the forecast: counts of a profile, measurements on this machine, and what they add up to."""
