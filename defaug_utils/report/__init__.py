"""Tables, curves and pictures of results."""
