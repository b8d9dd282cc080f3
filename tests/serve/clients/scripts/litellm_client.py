"""The library `litellm`, with its providers for the APIs of OpenAI, vLLM, LM Studio, Anthropic and Ollama."""

import json
import os

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
    report,
)

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices

import litellm

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city", "parameters": CITY},
}


def create(text=COUNT, provider="openai", path="/v1", **options):
    defaults = {"messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0, "num_retries": 0}
    defaults |= {"model": f"{provider}/{CHAT_MODEL}", "api_base": URL + path, "api_key": "none"}
    return litellm.completion(**(defaults | options))


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
        usage = getattr(chunk, "usage", None) or usage
    return {"text": text, "output_tokens": usage.completion_tokens}


def responses():
    reply = litellm.responses(
        model=f"openai/{CHAT_MODEL}",
        input=COUNT,
        max_output_tokens=16,
        temperature=0,
        api_base=URL + "/v1",
        api_key="none",
    )
    return reply.output[0].content[0].text


def other_providers():
    providers = {"hosted_vllm": "/v1", "lm_studio": "/v1", "llamafile": "/v1", "anthropic": "", "ollama_chat": ""}
    return {name: create(provider=name, path=path).choices[0].message.content for name, path in providers.items()}


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


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    reply = create("Describe a person.", response_format=form, max_tokens=60)
    return json.loads(reply.choices[0].message.content)


def embeddings():
    reply = litellm.embedding(
        model=f"openai/{EMBEDDING_MODEL}",
        input=["hello world", "the"],
        api_base=URL + "/v1",
        api_key="none",
        encoding_format="float",
    )
    return [len(item["embedding"]) for item in reply.data]


def full_context():
    return catch(lambda: create(LONG_TEXT))


report(chat, stream, responses, other_providers, tools, schema, embeddings, full_context)
