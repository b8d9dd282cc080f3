"""The official Python client of Ollama."""

import json

from ollama import Client
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

client = Client(host=URL)
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city", "parameters": CITY},
}


def create(text=COUNT, n=16, **options):
    messages = options.pop("messages", [{"role": "user", "content": text}])
    return client.chat(CHAT_MODEL, messages, options={"temperature": 0, "num_predict": n}, **options)


def chat():
    reply = create()
    return {
        "text": reply.message.content,
        "end": reply.done_reason,
        "input_tokens": reply.prompt_eval_count,
        "output_tokens": reply.eval_count,
    }


def stream():
    parts = list(create(stream=True))
    return {"text": "".join(part.message.content or "" for part in parts), "output_tokens": parts[-1].eval_count}


def generate():
    return client.generate(CHAT_MODEL, COUNT, options={"temperature": 0, "num_predict": 16}).response


def offered_tools():
    # The client has no parameter for tool_choice, so the model may call the tool or reply with a text.
    question = {"role": "user", "content": WEATHER_QUESTION}
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        question,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "rain"},
    ]
    first = create(messages=[question], tools=[WEATHER])
    last = create(messages=messages, tools=[WEATHER])
    return [bool(reply.message.content or reply.message.tool_calls) for reply in (first, last)]


def schema():
    return json.loads(create("Describe a person.", format=PERSON, n=60).message.content)


def embeddings():
    return [len(vector) for vector in client.embed(EMBEDDING_MODEL, ["hello world", "the"]).embeddings]


def models():
    return [model.model for model in client.list().models]


def full_context():
    return catch(lambda: create(LONG_TEXT))


def unknown_model():
    return catch(lambda: client.show("no-such-model"))


def cancel():
    def start_and_cancel():
        parts = create("Write a long story.", n=1500, stream=True)
        next(parts)
        running = read_metrics()["running"]
        parts.close()
        return running

    return measure_cancel(start_and_cancel)


report(chat, stream, generate, offered_tools, schema, embeddings, models, full_context, unknown_model, cancel)
