"""The protocol that compares them: training sets, leaks and reviews."""
