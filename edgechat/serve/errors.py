"""Error responses in the format of the OpenAI API, and decoding of request bodies."""

from __future__ import annotations

import codecs
import sys
import traceback
from typing import Any, Final, TypeVar

import msgspec

from edgechat.decode_errors import describe_json_error, describe_syntax_error
from edgechat.errors import (
    MAX_MESSAGE_CHARS,
    ContextOverflowError,
    EdgechatError,
    EngineDiedError,
    GrammarError,
    PlanError,
    TemplateError,
    UsageError,
)
from edgechat.humanize import shorten
from edgechat.serve.schemas import PATTERN_DESCRIPTIONS

RETRY_AFTER_S: Final = 2
_CLOSING_STATUSES: Final = (408, 413)  # with these, the server does not read the rest of the body
# Maximum length of the path of a request field, which contains keys from the request.
_MAX_PARAM_CHARS: Final = 200

T = TypeVar("T")


class ApiError(Exception):
    """Exception that becomes an error response, with the `param` and `code` fields of the OpenAI API."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, must_close: bool = False
    ) -> None:
        """Create an error; with `must_close`, the server closes the connection after the response."""
        super().__init__(shorten(message, MAX_MESSAGE_CHARS))
        self.status = status
        self.param = shorten(param, _MAX_PARAM_CHARS) if param is not None else None
        self.code = code
        self._must_close = must_close or status in _CLOSING_STATUSES

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the response, which depend on the status."""
        headers_of_status = {503: {"Retry-After": str(RETRY_AFTER_S)}, 401: {"WWW-Authenticate": "Bearer"}}
        return headers_of_status.get(self.status, {}) | ({"Connection": "close"} if self._must_close else {})

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the response."""
        error_types = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        default_type = "invalid_request_error" if self.status < 500 else "server_error"  # noqa: PLR2004
        error_type = error_types.get(self.status, default_type)
        return {"error": {"message": str(self), "type": error_type, "param": self.param, "code": self.code}}


def check_accepts_requests(*, is_accepting: bool) -> None:
    """Raise ApiError (503, server is shutting down) if `is_accepting` is false."""
    if not is_accepting:
        raise make_shutdown_error()


def make_shutdown_error() -> ApiError:
    """Build the error response for new requests to a server that is shutting down."""
    return ApiError(503, "The server is shutting down.", code="shutting_down")


def to_api_error(error: EdgechatError, param: str | None = None) -> ApiError:
    """Convert an EdgechatError to an error response; `param` is the name of the request field that holds the input."""
    if isinstance(error, ContextOverflowError):
        # Clients recognise this error by words of the message: litellm by those of llama-server, LangChain by the code.
        message = f"{error} The request exceeds the available context size (context_length_exceeded)."
        return ApiError(400, message, param=param, code="context_length_exceeded")
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), param=param, code="unsupported_format")
    if isinstance(error, (TemplateError, UsageError)):
        return ApiError(400, str(error))
    if isinstance(error, PlanError):
        return ApiError(503, str(error), code="out_of_memory")
    if isinstance(error, EngineDiedError):
        reason = str(error).splitlines()[0].rstrip(".")
        return ApiError(500, f"{reason}. The next request restarts the engine.", code="engine_died")
    return ApiError(500, str(error))


def make_internal_error(error: Exception) -> ApiError:
    """Convert an unexpected exception to an error response, and print its traceback to standard error.

    The response and the traceback do not contain the exception's message, because it may contain conversation text.
    """
    stack = "".join(traceback.format_tb(error.__traceback__))
    print(f"edgechat: Internal error {type(error).__name__}:\n{stack}", file=sys.stderr, flush=True)  # noqa: T201
    return ApiError(500, f"Internal error ({type(error).__name__}). The server printed a traceback to standard error.")


def decode_body(body: bytes | bytearray, body_type: type[T]) -> T:
    """Decode the JSON body of a request. Raises ApiError with the path of the invalid field, if known, as `param`."""
    try:
        return msgspec.json.decode(body.removeprefix(codecs.BOM_UTF8), type=body_type)
    except msgspec.ValidationError as error:
        problem, path = describe_json_error(error, PATTERN_DESCRIPTIONS, body_type)
        message = f"{path}: {problem}." if path else f"The body {problem}."
        raise ApiError(400, message, param=path or None, code="invalid_value") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        reason = describe_syntax_error(error, body)
        raise ApiError(400, f"The body is not valid JSON: {reason}.", code="invalid_json") from error


def decode_json_text(text: str, param: str) -> Any:
    """Decode the JSON in a string field of a request. Raises ApiError with the name of the field as `param`."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        reason = describe_syntax_error(error, text.encode("utf-8", "replace"))
        raise ApiError(400, f"{param}: not valid JSON ({reason}).", param=param) from error
