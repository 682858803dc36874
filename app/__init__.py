"""Hookjetty's service side: the two APIs, the shared domain and the SQL they agree on.

Imports nothing, so that the dispatcher can use the domain modules without loading Flask.
"""

__version__ = "0.1.0"
