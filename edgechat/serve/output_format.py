"""Output format of a reply: `response_format` of the OpenAI API, and the corresponding fields of other servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from edgechat.prompt.json_schemas import check_schema_size, make_json_rule
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS
from edgechat.serve.errors import ApiError, decode_json_text
from edgechat.serve.schemas import ChatRequest, GenerationParams, JsonFormat, SchemaFormat, StructuredOutputs
from edgechat.serve.tool_schemas import remove_nulls

# Fields that request unsupported features, with hints for the error messages. They are refused, because a reply that
# ignored them would not be what the client asked for.
_UNSUPPORTED_FIELDS: Final = {
    "grammar": "Use response_format with a JSON schema, or structured_outputs.",
    "guided_grammar": "Use response_format with a JSON schema, or structured_outputs.",
    "ebnf": "Use response_format with a JSON schema, or structured_outputs.",
    "functions": "Use tools.",
    "prompt_logprobs": "Use /v1/completions with echo and logprobs.",
    "use_beam_search": "",
    "audio": "",
    "web_search_options": "",
}
# Unsupported fields that request the feature even if their value is an empty object.
_OBJECT_FIELDS: Final = ("audio", "web_search_options")
_MAX_CHOICES: Final = 1000
_SLASH_OR_ESCAPE: Final = re.compile(r"\\.|/", re.DOTALL)


class OutputFormat(NamedTuple):
    """Output format of a reply: its grammar rule, and the name of the request field that specifies it."""

    rule: str = ""
    """Grammar rule; "" for free text."""
    param: str = ""


FREE_TEXT: Final = OutputFormat()


def check_supported(body: GenerationParams) -> None:
    """Raise ApiError if the request asks for a feature that edgechat does not support, or for two opposite ones."""
    for name, hint in _UNSUPPORTED_FIELDS.items():
        if getattr(body, name, None) or (name in _OBJECT_FIELDS and getattr(body, name, None) is not None):
            raise ApiError(400, f"{name}: not supported. {hint}".strip(), param=name)
    modalities = getattr(body, "modalities", None)
    if isinstance(modalities, list) and any(modality != "text" for modality in modalities):
        raise ApiError(400, "modalities: only text is supported.", param="modalities")
    if getattr(body, "continue_final_message", None) and getattr(body, "add_generation_prompt", None):
        message = "continue_final_message: cannot be true together with add_generation_prompt."
        raise ApiError(400, message, param="continue_final_message")


def make_output_format(body: GenerationParams) -> OutputFormat:
    """Return the output format of a request.

    Raises ApiError if the request has several output formats or an invalid one, and GrammarError for a schema keyword
    that is not supported.
    """
    formats = list(_find_formats(body))
    if len(formats) > 1:
        names = " and ".join(output_format.param for output_format in formats)
        raise ApiError(400, f"{names}: only one output format is allowed.", param=formats[1].param)
    return formats[0] if formats else FREE_TEXT


def _find_formats(body: GenerationParams) -> Iterator[OutputFormat]:
    response_format = body.response_format if isinstance(body, ChatRequest) else None
    if isinstance(response_format, JsonFormat):
        yield _make_json_format({"type": "object"} | (response_format.schema or {}), "response_format")
    if isinstance(response_format, SchemaFormat):
        yield _make_schema_format(response_format)
    outputs = body.structured_outputs or StructuredOutputs()
    if outputs.grammar is not None or outputs.structural_tag is not None:
        message = "structured_outputs: only json, json_object, regex and choice are supported."
        raise ApiError(400, message, param="structured_outputs")
    schemas: dict[str, dict[str, Any] | bool | str | None] = {
        "json_schema": body.json_schema, "guided_json": body.guided_json, "structured_outputs.json": outputs.json,
        "structured_outputs.json_object": {"type": "object"} if outputs.json_object else None,
    }  # fmt: skip
    regexes = {"guided_regex": body.guided_regex, "regex": body.regex, "structured_outputs.regex": outputs.regex}
    choices = {"guided_choice": body.guided_choice, "structured_outputs.choice": outputs.choice}
    yield from (_make_json_format(schema, name) for name, schema in schemas.items() if schema is not None)
    yield from (_make_regex_format(regex, name) for name, regex in regexes.items() if regex is not None)
    yield from (_make_choice_format(choice, name) for name, choice in choices.items() if choice is not None)


def _make_schema_format(response_format: SchemaFormat) -> OutputFormat:
    named_schema = response_format.json_schema
    if named_schema is not None and named_schema.schema is not None:
        return _make_json_format(named_schema.schema, "response_format.json_schema.schema")
    if response_format.schema is None:
        param = "response_format.json_schema.schema"
        raise ApiError(400, f"{param}: missing; it must be the JSON schema of the reply.", param=param)
    return _make_json_format(response_format.schema, "response_format.schema")


def _make_json_format(schema: dict[str, Any] | bool | str, param: str) -> OutputFormat:  # noqa: FBT001  (a JSON schema may be a boolean)
    if isinstance(schema, str):
        check_schema_size([schema], param, MAX_GRAMMAR_CHARS)
        schema = decode_json_text(schema, param)
    if not isinstance(schema, (dict, bool)):
        raise ApiError(400, f"{param}: a JSON schema must be an object or a boolean.", param=param)
    return OutputFormat(make_json_rule(remove_nulls(schema), param), param)


def _make_regex_format(regex: str, param: str) -> OutputFormat:
    if not regex:
        raise ApiError(400, f"{param}: the regular expression must not be empty.", param=param)
    escaped_regex = _SLASH_OR_ESCAPE.sub(lambda m: "\\/" if m[0] == "/" else m[0], regex).replace("\n", "\\n")
    return OutputFormat(f"/{escaped_regex}/", param)


def _make_choice_format(choices: list[str], param: str) -> OutputFormat:
    if not 0 < len(choices) <= _MAX_CHOICES or "" in choices:
        message = f"{param}: there must be 1 to {_MAX_CHOICES} choices, and none may be empty."
        raise ApiError(400, message, param=param)
    return OutputFormat(" | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices), param)
