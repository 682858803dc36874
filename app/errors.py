"""The one error type of the domain; each surface renders it in its own dialect.

The codes are exactly those of the tenant API's error model (tenant-api.md, Error Model). The
message is written for the person who has to act on it: which field, what is wrong, what to do
next. Anything that is not an ``Error`` is a defect and reaches the outside only as
``internal_error``.
"""

from __future__ import annotations

STATUS_OF_CODE = {
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "version_conflict": 409,
    "rate_limited": 429,
    "internal_error": 500,
    "dependency_down": 503,
}


class Error(Exception):
    """Something the caller of an operation must hear about.

    ``details`` maps a field (or a batch index such as ``events.3.type``) to its own reason;
    ``retry_after`` is in seconds and set exactly where waiting helps.
    """

    def __init__(
        self,
        code: str,
        message: str,
        details: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or {}
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status that belongs to the code."""
        return STATUS_OF_CODE[self.code]


def invalid(field: str, reason: str) -> Error:
    """A field of the request that cannot be accepted, with what would be."""
    return Error("invalid_request", f"{field}: {reason}", {field: reason})


def not_found(what: str) -> Error:
    """Nothing of that name that the caller may see; another tenant's things look the same."""
    return Error("not_found", f"{what} does not exist")


def conflict(message: str) -> Error:
    """The request is well-formed, but the present state of things forbids it."""
    return Error("version_conflict", message)


def dependency_down(message: str = "the database cannot be reached; try again shortly") -> Error:
    """PostgreSQL is away. Nothing was done, or its outcome is unknown."""
    return Error("dependency_down", message, retry_after=1.0)
