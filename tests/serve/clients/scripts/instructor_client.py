"""The library `instructor`: replies as Pydantic models."""

from typing import Annotated

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from report import CHAT_MODEL, LONG_TEXT, URL, catch, report


class Person(BaseModel):
    name: Annotated[str, Field(max_length=12)]
    age: Annotated[int, Field(ge=0, le=99)]


def create(mode, text="Describe a person.", response_model=Person):
    client = instructor.from_openai(OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0), mode=mode)
    return client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": text}],
        response_model=response_model,
        temperature=0,
        max_tokens=80,
        max_retries=0,
    )


def schema():
    return create(instructor.Mode.JSON_SCHEMA).model_dump()


def schema_as_tool():
    return create(instructor.Mode.TOOLS).model_dump()


def partial_schema():
    client = instructor.from_openai(
        OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0), mode=instructor.Mode.JSON_SCHEMA
    )
    parts = client.chat.completions.create_partial(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Describe a person."}],
        response_model=Person,
        temperature=0,
        max_tokens=80,
    )
    return list(parts)[-1].model_dump()


def full_context():
    return catch(lambda: create(instructor.Mode.TOOLS, LONG_TEXT))


report(schema, schema_as_tool, partial_schema, full_context)
