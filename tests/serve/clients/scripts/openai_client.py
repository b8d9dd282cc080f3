"""The official Python client of OpenAI: chat completions and embeddings."""

import json

from openai import OpenAI
from pydantic import BaseModel
from report import (
    CHAT_MODEL,
    CITY,
    COUNT,
    EMBEDDING_MODEL,
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
    "function": {"name": "get_weather", "description": "The weather in a city", "parameters": CITY},
}


def create(text=COUNT, **options):
    defaults = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16}
    return client.chat.completions.create(**(defaults | {"temperature": 0} | options))


def chat():
    reply = create()
    return {
        "text": reply.choices[0].message.content,
        "end": reply.choices[0].finish_reason,
        "input_tokens": reply.usage.prompt_tokens,
        "output_tokens": reply.usage.completion_tokens,
    }


def stream():
    text, usage = "", None
    for chunk in create(stream=True, stream_options={"include_usage": True}):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    return {"text": text, "output_tokens": usage.completion_tokens}


def tools():
    question = {"role": "user", "content": WEATHER_QUESTION}
    first = create(messages=[question], tools=[WEATHER], tool_choice="required", parallel_tool_calls=False,
                   max_tokens=100).choices[0]  # fmt: skip
    call = first.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    last = create(messages=[question, first.message, result], tools=[WEATHER], tool_choice="none").choices[0]
    return {
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
        "end": first.finish_reason,
        "reply": last.message.content,
        "later_calls": len(last.message.tool_calls or []),
    }


def streamed_tools():
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}
    with client.chat.completions.stream(
        model=CHAT_MODEL, messages=[{"role": "user", "content": WEATHER_QUESTION}], temperature=0, **options
    ) as events:
        function = events.get_final_completion().choices[0].message.tool_calls[0].function
    return {"name": function.name, "arguments": json.loads(function.arguments)}


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    reply = create("Describe a person.", response_format=form, max_tokens=60)
    return json.loads(reply.choices[0].message.content)


def parsed():
    class Reply(BaseModel):
        is_true: bool

    reply = client.chat.completions.parse(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "Is ice cold?"}],
        response_format=Reply,
        temperature=0,
        max_tokens=60,
    )
    return reply.choices[0].message.parsed.model_dump()


def embeddings():
    reply = client.embeddings.create(model=EMBEDDING_MODEL, input=["hello world", "the"])
    return [len(item.embedding) for item in reply.data]


def models():
    return [model.id for model in client.models.list()]


def other_model():
    return create(model="gpt-4o").model


def full_context():
    return catch(lambda: create(LONG_TEXT))


def cancel():
    def start_and_cancel():
        with create("Write a long story.", stream=True, max_tokens=1500, extra_body={"ignore_eos": True}) as chunks:
            next(iter(chunks))
            return read_metrics()["running"]

    return measure_cancel(start_and_cancel)


report(chat, stream, tools, streamed_tools, schema, parsed, embeddings, models, other_model, full_context, cancel)
