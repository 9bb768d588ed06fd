"""Errors as AWS answers them, and the kernel's errors in AWS's words (contract W-8, W-9, 9.1)."""

from __future__ import annotations

from anybatch import Conflict, InvalidValue, NotFound, RequestError


class ApiError(Exception):
    """An answer that is not 200. `code` goes into the header `x-amzn-ErrorType`."""

    def __init__(self, message: str, *, code: str = "ClientException", status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status


def refused(message: str) -> ApiError:
    """AWS's own 'no' to what a caller asks: ClientException, 400."""
    return ApiError(message)


def unsupported(what: str) -> ApiError:
    """What AWS Batch does and this front end does not."""
    return ApiError(f"{what} is not supported here (anybatch). Nothing was changed.")


def denied(message: str, code: str = "AccessDeniedException") -> ApiError:
    """403."""
    return ApiError(message, code=code, status=403)


def translate(error: RequestError) -> ApiError:
    """A refusal of the kernel's that no check here came before."""
    match error:
        case NotFound(kind="job queue"):
            return refused(f"JobQueue {error.name} not found.")
        case NotFound(kind="job definition"):
            name = error.name.partition(":")[0]
            return refused(f"JobDefinition name {name} does not exist or is not in ACTIVE status")
        case NotFound(kind="compute environment"):
            return refused(f"compute-environment/{error.name} does not exist")
        case NotFound():
            return refused(f"{error.kind.capitalize()} {error.name} does not exist")
        case Conflict() | InvalidValue():
            return refused(str(error))
        case _:
            return refused(str(error))
