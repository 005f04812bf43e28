"""Where a defect goes, and of what shape it is."""
