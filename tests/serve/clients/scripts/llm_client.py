"""The library of the program `llm`, with the server in its list of OpenAI-compatible models."""

import json
import os
import tempfile
from pathlib import Path

from report import (
    CHAT_MODEL,
    COUNT,
    LONG_TEXT,
    PERSON,
    URL,
    WEATHER_QUESTION,
    catch,
    report,
)

folder = tempfile.TemporaryDirectory()
os.environ["LLM_USER_PATH"] = folder.name
entry = {"model_id": "local", "model_name": CHAT_MODEL, "api_base": URL + "/v1"}
entry |= {"supports_schema": True, "supports_tools": True}
# Every JSON text is YAML, too.
Path(folder.name, "extra-openai-models.yaml").write_text(json.dumps([entry]))

import llm  # noqa: E402 - reads LLM_USER_PATH

model = llm.get_model("local")


def prompt(text=COUNT, n=16, **options):
    return model.prompt(text, temperature=0, max_tokens=n, **options)


def chat():
    reply = prompt(stream=False)
    return {"text": reply.text(), "input_tokens": reply.usage().input, "output_tokens": reply.usage().output}


def stream():
    reply = prompt(stream=True)
    return {"text": "".join(reply), "output_tokens": reply.usage().output}


def offered_tools():
    # The library has no parameter for tool_choice, so the model may call the tool or reply with a text.
    def get_weather(city: str) -> str:
        """Return the weather in a city."""
        return f"rain in {city}"

    chain = model.chain(WEATHER_QUESTION, tools=[get_weather], options={"temperature": 0, "max_tokens": 30})
    reply = prompt(WEATHER_QUESTION, tools=[get_weather], stream=False)
    return [bool(list(chain.responses())), bool(reply.text() or reply.tool_calls())]


def conversation():
    talk = model.conversation()
    first = talk.prompt(COUNT, temperature=0, max_tokens=16).text()
    return [first, talk.prompt("Go on.", temperature=0, max_tokens=16).text()]


def schema():
    return json.loads(prompt("Describe a person.", n=60, schema=PERSON, stream=False).text())


def full_context():
    return catch(lambda: prompt(LONG_TEXT, stream=False).text())


report(chat, stream, conversation, offered_tools, schema, full_context)
