"""The official Python client of Anthropic: messages."""

import json

from anthropic import Anthropic
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

client = Anthropic(base_url=URL, api_key="none", max_retries=0)
WEATHER = {"name": "get_weather", "description": "The weather in a city", "input_schema": CITY}
ONE_CALL = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 100}


def make_options(text=COUNT, **options):
    defaults = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16}
    return defaults | {"extra_body": {"temperature": 0}} | options


def chat():
    reply = client.messages.create(**make_options())
    return {
        "text": reply.content[0].text,
        "end": reply.stop_reason,
        "input_tokens": reply.usage.input_tokens + reply.usage.cache_read_input_tokens,
        "output_tokens": reply.usage.output_tokens,
    }


def stream():
    with client.messages.stream(**make_options()) as events:
        text = "".join(events.text_stream)
        return {"text": text, "output_tokens": events.get_final_message().usage.output_tokens}


def tools():
    first = client.messages.create(**make_options(WEATHER_QUESTION, **ONE_CALL))
    call = first.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    messages = [
        {"role": "user", "content": WEATHER_QUESTION},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    last = client.messages.create(**make_options(messages=messages, tools=[WEATHER], tool_choice={"type": "none"}))
    return {
        "name": call.name,
        "arguments": call.input,
        "end": first.stop_reason,
        "reply": last.content[0].text,
        "later_calls": sum(block.type == "tool_use" for block in last.content),
    }


def streamed_tools():
    with client.messages.stream(**make_options(WEATHER_QUESTION, **ONE_CALL)) as events:
        call = events.get_final_message().content[-1]
    return {"name": call.name, "arguments": call.input}


def schema():
    form = {"format": {"type": "json_schema", "schema": PERSON}}
    reply = client.messages.create(**make_options("Describe a person.", output_config=form, max_tokens=60))
    return json.loads(reply.content[0].text)


def count_tokens():
    counted = client.messages.count_tokens(model=CHAT_MODEL, messages=make_options()["messages"]).input_tokens
    return {"counted": counted, "used": chat()["input_tokens"]}


def models():
    return [model.id for model in client.models.list()]


def full_context():
    return catch(lambda: client.messages.create(**make_options(LONG_TEXT)))


def cancel():
    def start_and_cancel():
        options = make_options("Write a long story.", max_tokens=1500)
        with client.messages.stream(**options) as events:
            next(iter(events.text_stream))
            return read_metrics()["running"]

    return measure_cancel(start_and_cancel)


report(chat, stream, tools, streamed_tools, schema, count_tokens, models, full_context, cancel)
