"""A test or more for each known threat, named after it.

docs/security.md says what is decided otherwise.
"""
