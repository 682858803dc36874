"""A test or more for each threat, named after it.

docs/security.md says what is decided otherwise.
"""
