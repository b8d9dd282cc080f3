"""What is told to a client when something is wrong, in the shape that OpenAI's clients read."""

from __future__ import annotations

import re
import sys
import traceback
from typing import Any, Final, TypeVar

import msgspec

from edgechat.errors import (
    ContextOverflowError,
    EdgechatError,
    EngineDiedError,
    GrammarError,
    PlanError,
    TemplateError,
    UsageError,
)

RETRY_AFTER_S: Final = 2
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`")

T = TypeVar("T")


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        of_status = {
            503: {"Retry-After": str(RETRY_AFTER_S)}, 401: {"WWW-Authenticate": "Bearer"},
            408: {"Connection": "close"}, 413: {"Connection": "close"},  # the rest of the body is not read
        }  # fmt: skip
        return of_status.get(self.status, {})

    def body(self) -> dict[str, Any]:
        """The OpenAI shape."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")  # noqa: PLR2004
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def check_accepting(*, is_open: bool) -> None:
    """Raises ApiError if nothing more is taken."""
    if not is_open:
        raise ApiError(503, "the server is shutting down", code="shutting_down")


def to_api_error(error: EdgechatError, param: str | None = None) -> ApiError:
    """What a client is told of an error of ours; `param` is where its texts were."""
    if isinstance(error, ContextOverflowError):
        return ApiError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), param=param, code="unsupported_format")
    if isinstance(error, (TemplateError, UsageError)):
        return ApiError(400, str(error))
    if isinstance(error, PlanError):
        return ApiError(503, str(error), code="out_of_memory")
    if isinstance(error, EngineDiedError):
        return ApiError(500, f"{str(error).splitlines()[0]}; the next request starts it again", code="engine_died")
    return ApiError(500, str(error))


def internal_error(error: Exception) -> ApiError:
    """What a client is told of an error that nobody thought of; where it was goes to standard error, nothing of its words."""
    where = "".join(traceback.format_tb(error.__traceback__))
    print(f"edgechat: an error of its own, {type(error).__name__}:\n{where}", file=sys.stderr, flush=True)  # noqa: T201
    return ApiError(500, f"an error of edgechat's own ({type(error).__name__}); its terminal shows where")


def decode_body(body: bytes, kind: type[T]) -> T:
    """The body of a request. Raises ApiError, which names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        path = _PATH.search(str(error))
        words = _PATH.sub("", str(error))
        param = path[1] if path and path[1] else None
        raise ApiError(400, f"{param}: {words}" if param else words, param=param, code="invalid_value") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
