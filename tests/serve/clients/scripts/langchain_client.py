"""LangChain's classes for the OpenAI API."""

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
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

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city", "parameters": CITY},
}
NAMED_PERSON = PERSON | {"title": "person", "description": "A person"}


def make_model(n=16, **options):
    return ChatOpenAI(
        model=CHAT_MODEL, base_url=URL + "/v1", api_key="none", temperature=0, max_tokens=n, max_retries=0, **options
    )


def chat():
    reply = make_model().invoke(COUNT)
    usage = reply.usage_metadata
    return {
        "text": reply.content,
        "end": reply.response_metadata["finish_reason"],
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
    }


def stream():
    chunks = list(make_model(stream_usage=True).stream(COUNT))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return {"text": whole.content, "output_tokens": whole.usage_metadata["output_tokens"]}


def responses():
    return make_model(use_responses_api=True).invoke(COUNT).text


def batch():
    return [reply.content for reply in make_model().batch([COUNT, COUNT])]


def tools():
    model = make_model(100)
    first = model.bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False).invoke(WEATHER_QUESTION)
    call = first.tool_calls[0]
    messages = [HumanMessage(WEATHER_QUESTION), first, ToolMessage("rain", tool_call_id=call["id"])]
    last = model.bind_tools([WEATHER], tool_choice="none").invoke(messages)
    return {
        "name": call["name"],
        "arguments": call["args"],
        "end": first.response_metadata["finish_reason"],
        "reply": last.content,
        "later_calls": len(last.tool_calls),
    }


def schema():
    return make_model(60).with_structured_output(NAMED_PERSON, method="json_schema").invoke("Describe a person.")


def schema_as_tool():
    return make_model(60).with_structured_output(NAMED_PERSON, method="function_calling").invoke("Describe a person.")


def tools_and_schema():
    strict_tool = WEATHER | {"function": WEATHER["function"] | {"strict": True}}
    model = make_model(100).bind_tools([strict_tool], response_format=NAMED_PERSON, strict=True)
    reply = model.invoke("Describe a person.")
    return {"calls": [call["args"] for call in reply.tool_calls], "parsed": reply.additional_kwargs.get("parsed")}


def embeddings():
    model = OpenAIEmbeddings(
        model=EMBEDDING_MODEL, base_url=URL + "/v1", api_key="none", check_embedding_ctx_length=False
    )
    return [len(vector) for vector in model.embed_documents(["hello world", "the"])]


def full_context():
    return catch(lambda: make_model().invoke(LONG_TEXT))


def cancel():
    def start_and_cancel():
        chunks = make_model(1500).stream("Write a long story.")
        next(chunks)
        running = read_metrics()["running"]
        chunks.close()
        return running

    return measure_cancel(start_and_cancel)


report(
    chat, stream, responses, batch, tools, schema, schema_as_tool, tools_and_schema, embeddings, full_context, cancel
)  # fmt: skip
