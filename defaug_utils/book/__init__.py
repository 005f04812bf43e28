"""What makes a book of notebooks: their start and end, profiles, batches, stored results."""
