"""A test for each known threat, named after it."""
