"""The methods that make defects, one module each."""
