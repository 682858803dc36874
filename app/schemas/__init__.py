"""Both contracts as marshmallow schemas: the values, what they are made of, a module per noun."""
