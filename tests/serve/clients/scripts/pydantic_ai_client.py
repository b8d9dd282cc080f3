"""Agents of Pydantic AI with the chat completions and Responses APIs."""

import asyncio
from typing import Annotated

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from report import CHAT_MODEL, COUNT, LONG_TEXT, URL, catch, measure_cancel, read_metrics, report

SETTINGS = {"temperature": 0, "max_tokens": 16}
SCHEMA_SETTINGS = {"temperature": 0, "max_tokens": 80, "parallel_tool_calls": False}


class Person(BaseModel):
    name: Annotated[str, Field(max_length=12)]
    age: Annotated[int, Field(ge=0, le=99)]


def get_weather(city: str) -> str:
    """Return the weather in a city."""
    return f"rain in {city}"


def make_agent(model_class=OpenAIChatModel, **options):
    model = model_class(CHAT_MODEL, provider=OpenAIProvider(base_url=URL + "/v1", api_key="none"))
    return Agent(model, **options)


def chat():
    result = make_agent().run_sync(COUNT, model_settings=SETTINGS)
    usage = result.usage
    return {"text": result.output, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}


def stream():
    async def read():
        async with make_agent().run_stream(COUNT, model_settings=SETTINGS) as result:
            text = "".join([piece async for piece in result.stream_text(delta=True)])
            return {"text": text, "output_tokens": result.usage.output_tokens}

    return asyncio.run(read())


def responses():
    return make_agent(OpenAIResponsesModel).run_sync(COUNT, model_settings=SETTINGS).output


def schema():
    agent = make_agent(output_type=NativeOutput(Person, strict=True))
    return agent.run_sync("Describe a person.", model_settings=SCHEMA_SETTINGS).output.model_dump()


def schema_as_tool():
    agent = make_agent(output_type=ToolOutput(Person))
    return agent.run_sync("Describe a person.", model_settings=SCHEMA_SETTINGS).output.model_dump()


def tools_and_schema():
    agent = make_agent(output_type=NativeOutput(Person, strict=True), tools=[get_weather])
    # Otherwise the starter calls the tool again and again.
    settings = SCHEMA_SETTINGS | {"extra_body": {"tool_choice": "none"}}
    result = agent.run_sync("Describe a person.", model_settings=settings)
    return {"calls": [], "parsed": result.output.model_dump()}


def full_context():
    return catch(lambda: make_agent().run_sync(LONG_TEXT, model_settings=SETTINGS))


def cancel():
    async def read():
        settings = {"temperature": 0, "max_tokens": 1500}
        async with make_agent().run_stream("Write a long story.", model_settings=settings) as result:
            await anext(result.stream_text(delta=True))
            return read_metrics()["running"]

    return measure_cancel(lambda: asyncio.run(read()))


report(chat, stream, responses, schema, schema_as_tool, tools_and_schema, full_context, cancel)
