"""What people draw, paint and decide with in a notebook."""
