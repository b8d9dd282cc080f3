"""Agents of the OpenAI Agents SDK with the chat completions and Responses APIs."""

import asyncio
from typing import Annotated

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from report import CHAT_MODEL, COUNT, LONG_TEXT, URL, WEATHER_QUESTION, catch, report

set_tracing_disabled(disabled=True)
calls = []
loop = asyncio.new_event_loop()


class Person(BaseModel):
    name: Annotated[str, Field(max_length=12)]
    age: Annotated[int, Field(ge=0, le=99)]


@function_tool
def get_weather(city: Annotated[str, Field(max_length=12)]) -> str:
    """Return the weather in a city."""
    calls.append({"city": city})
    return "rain"


client = AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)


def make_agent(n=16, settings=None, model_class=OpenAIChatCompletionsModel, **options):
    model = model_class(model=CHAT_MODEL, openai_client=client)
    model_settings = ModelSettings(temperature=0, max_tokens=n, include_usage=True, **(settings or {}))
    return Agent(name="agent", model=model, model_settings=model_settings, **options)


def run(agent, text):
    return loop.run_until_complete(Runner.run(agent, text, max_turns=4))


def chat():
    result = run(make_agent(), COUNT)
    usage = result.context_wrapper.usage
    return {"text": result.final_output, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}


def stream():
    async def read():
        result = Runner.run_streamed(make_agent(), COUNT)
        text = ""
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                text += event.data.delta
        return {"text": text, "output_tokens": result.context_wrapper.usage.output_tokens}

    return loop.run_until_complete(read())


def tool_runner():
    calls.clear()
    # After the first call the SDK leaves the choice to the model again.
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    result = catch(lambda: run(make_agent(100, settings, tools=[get_weather]), WEATHER_QUESTION))
    if result["type"] not in {None, "MaxTurnsExceeded"}:
        raise RuntimeError(result)
    return {"name": "get_weather", "arguments": calls[0]}


def responses_schema():
    # The SDK raises an error if a response is cut off, so this one must end.
    agent = make_agent(80, model_class=OpenAIResponsesModel, output_type=Person)
    return run(agent, "Describe a person.").final_output.model_dump()


def responses_tool_runner():
    calls.clear()
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    agent = make_agent(200, settings, OpenAIResponsesModel, tools=[get_weather])
    result = catch(lambda: run(agent, WEATHER_QUESTION))
    if result["type"] not in {None, "MaxTurnsExceeded"}:
        raise RuntimeError(result)
    return {"name": "get_weather", "arguments": calls[0]}


def schema():
    return run(make_agent(80, output_type=Person), "Describe a person.").final_output.model_dump()


def tools_and_schema():
    agent = make_agent(80, {"tool_choice": "none"}, output_type=Person, tools=[get_weather])
    return {"calls": [], "parsed": run(agent, "Describe a person.").final_output.model_dump()}


def full_context():
    return catch(lambda: run(make_agent(), LONG_TEXT))


report(chat, stream, responses_schema, responses_tool_runner, tool_runner, schema, tools_and_schema, full_context)
