"""Data sets: their layouts, how they are prepared, the workshop's surfaces, downloads and exports."""
