"""The official Python client of OpenAI: the Responses API."""

import json

from openai import OpenAI
from pydantic import BaseModel
from report import (
    CHAT_MODEL,
    CITY,
    COUNT,
    LONG_TEXT,
    PERSON,
    URL,
    WEATHER_QUESTION,
    catch,
    measure_cancel,
    read_metrics,
    report,
)

client = OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": CITY,
    "strict": True,
}
ONE_CALL = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 100}


def make_options(prompt=COUNT, **options):
    return {"model": CHAT_MODEL, "input": prompt, "max_output_tokens": 16, "temperature": 0} | options


def create(prompt=COUNT, **options):
    return client.responses.create(**make_options(prompt, **options))


def chat():
    reply = create()
    return {
        "text": reply.output_text,
        "end": reply.incomplete_details.reason,
        "input_tokens": reply.usage.input_tokens,
        "output_tokens": reply.usage.output_tokens,
    }


def stream():
    text, usage = "", None
    with client.responses.stream(**make_options()) as events:
        for event in events:
            text += event.delta if event.type == "response.output_text.delta" else ""
            # The client has no final response for a reply that is cut off.
            usage = event.response.usage if event.type == "response.incomplete" else usage
    return {"text": text, "output_tokens": usage.output_tokens}


def conversation():
    first = create()
    return [first.output_text, create("Go on.", previous_response_id=first.id).output_text]


def tools():
    call = next(item for item in create(WEATHER_QUESTION, **ONE_CALL).output if item.type == "function_call")
    items = [
        {"role": "user", "content": WEATHER_QUESTION},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    last = create(items, tools=[WEATHER], tool_choice="none")
    return {
        "name": call.name,
        "arguments": json.loads(call.arguments),
        "reply": last.output_text,
        "later_calls": sum(item.type == "function_call" for item in last.output),
    }


def streamed_tools():
    with client.responses.stream(**make_options(WEATHER_QUESTION, **ONE_CALL)) as events:
        arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
        call = next(item for item in events.get_final_response().output if item.type == "function_call")
    return {"name": call.name, "arguments": json.loads(arguments)}


def schema():
    form = {"format": {"type": "json_schema", "name": "person", "strict": True, "schema": PERSON}}
    return json.loads(create("Describe a person.", text=form, max_output_tokens=60).output_text)


def parsed():
    class Reply(BaseModel):
        is_true: bool

    reply = client.responses.parse(**make_options("Is ice cold?", text_format=Reply, max_output_tokens=60))
    return reply.output_parsed.model_dump()


def full_context():
    return catch(lambda: create(LONG_TEXT))


def cancel():
    def start_and_cancel():
        with create("Write a long story.", stream=True, max_output_tokens=1500) as events:
            next(event for event in events if event.type == "response.output_text.delta")
            return read_metrics()["running"]

    return measure_cancel(start_and_cancel)


report(chat, stream, conversation, tools, streamed_tools, schema, parsed, full_context, cancel)
