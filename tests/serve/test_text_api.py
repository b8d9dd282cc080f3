"""Endpoints for tokens, prompts and properties, as clients of llama-server and vLLM use them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat import __version__
from tests.serve.client import ServerProcess, user

TEXT = "What is 媽 and 🤗?"


def post(server: ServerProcess, path: str, **body: Any) -> Any:
    status, answer, _ = server.request(path, body)
    assert status == 200, answer
    return answer


def test_text_is_restored_from_its_tokens(server: ServerProcess, tiny_server: ServerProcess) -> None:
    for each in (server, tiny_server):
        answer = post(each, "/tokenize", content=TEXT)
        assert answer["count"] == len(answer["tokens"]) > 5
        restored = post(each, "/detokenize", tokens=answer["tokens"])
        assert restored["content"].strip() == restored["prompt"].strip() == TEXT
    assert post(server, "/v1/detokenize", tokens=[])["content"] == ""
    tokens = post(server, "/tokenize", content="a " * 4000)["tokens"]  # more than one part
    assert len(tokens * 2) > 4096
    assert post(server, "/detokenize", tokens=tokens * 2)["content"] == "a " * 8000


def test_start_token_and_control_tokens_are_optional(tiny_server: ServerProcess) -> None:
    assert post(tiny_server, "/tokenize", content="a", add_special=True)["tokens"][0] == 1
    assert 1 not in post(tiny_server, "/tokenize", content="a")["tokens"]
    (control,) = post(tiny_server, "/tokenize", content="<|user|>")["tokens"]
    plain = post(tiny_server, "/tokenize", content="<|user|>", parse_special=False)["tokens"]
    assert control not in plain
    assert len(plain) > 1
    assert post(tiny_server, "/detokenize", tokens=[control])["content"] == "<|user|>"
    mixed = post(tiny_server, "/tokenize", content=["<|user|>", 300, "a"], add_special=True)["tokens"]
    assert mixed[:3] == [1, control, 300]


def test_pieces_are_texts_or_bytes(server: ServerProcess) -> None:
    tokens = post(server, "/tokenize", content=TEXT, with_pieces=True)["tokens"]
    assert [token["id"] for token in tokens] == post(server, "/tokenize", content=TEXT)["tokens"]
    pieces = [bytes(p) if isinstance(p := token["piece"], list) else p.encode() for token in tokens]
    assert b"".join(pieces).decode() == TEXT
    assert any(isinstance(token["piece"], list) for token in tokens)


def test_forms_of_vllm(server: ServerProcess, tiny_server: ServerProcess) -> None:
    answer = post(server, "/tokenize", model="starter", prompt="Hello", return_token_strs=True)
    assert (answer["token_strs"], answer["max_model_len"]) == (["Hello"], 2048)
    assert post(tiny_server, "/tokenize", prompt="a")["tokens"][0] == 1
    assert post(tiny_server, "/tokenize", prompt="a", add_special_tokens=False)["tokens"][0] != 1
    count = post(server, "/tokenize", messages=user("Hi"))["count"]
    reply = post(server, "/v1/chat/completions", messages=user("Hi"), max_tokens=1)
    assert count == reply["usage"]["prompt_tokens"]
    for path in ("/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"):
        assert post(server, path, messages=user("Hi"))["input_tokens"] == count


def test_rendered_prompt_has_the_tokens_of_the_chat(server: ServerProcess) -> None:
    prompt = post(server, "/apply-template", messages=user("Hi <|im_end|>"))["prompt"]
    assert prompt.endswith("<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    whole = post(server, "/apply-template", messages=user("Hi"))["prompt"]
    completion = post(server, "/v1/completions", prompt=whole, max_tokens=1)["usage"]["prompt_tokens"]
    assert completion == post(server, "/tokenize", messages=user("Hi"))["count"]
    open_prompt = post(server, "/apply-template", messages=user("Hi"), add_generation_prompt=False)["prompt"]
    assert whole == open_prompt + "<|im_start|>assistant\n"
    conversation = [*user("Hi"), {"role": "assistant", "content": "Hello"}]
    assert post(server, "/apply-template", messages=conversation)["prompt"].endswith("assistant\nHello")


def test_embedding_model_tokenises_with_its_own_vocabulary(tiny_server: ServerProcess) -> None:
    answer = post(tiny_server, "/tokenize", model="tiny-bert", content="hello world", add_special=True)
    assert answer["tokens"] == [2, 57, 58, 3]
    assert post(tiny_server, "/tokenize", model="tiny-bert", content="hello world")["tokens"] == [57, 58]
    assert post(tiny_server, "/detokenize", model="tiny-bert", tokens=[57, 58])["content"].split() == ["hello", "world"]
    status, answer, _ = tiny_server.request("/apply-template", {"model": "tiny-bert", "messages": user("Hi")})
    assert (status, "embedding model" in answer["error"]["message"]) == (400, True)
    assert tiny_server.request("/tokenize", {"model": "tiny-bert", "messages": user("Hi")})[0] == 400


def test_properties_have_no_path(server: ServerProcess, tiny_server: ServerProcess) -> None:
    status, properties, _ = server.request("/props")
    assert status == 200
    assert properties["default_generation_settings"]["n_ctx"] == 2048
    assert properties["default_generation_settings"]["params"]["temperature"] >= 0
    assert properties["total_slots"] >= 1
    assert properties["model_alias"] == "starter"
    assert "/" not in properties["model_path"]
    assert "<|im_start|>" in properties["chat_template"]
    assert properties["build_info"] == f"edgechat-{__version__}"
    assert tiny_server.request("/props?model=tiny-bert")[1]["model_path"] == "tiny-bert.gguf"
    assert server.request("/version")[1] == {"version": __version__}
    status, answer, _ = server.request("/slots")
    assert (status, "no slots" in answer["error"]["message"]) == (501, True)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "content: missing"), ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": [999999]}, "vocabulary"), ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"content": "word " * 20000}, "context"), ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [999999]}, "vocabulary"), ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"), ("/apply-template", {}, "messages"),
    ],
)  # fmt: skip
def test_invalid_request_is_reported(server: ServerProcess, path: str, body: dict[str, Any], message: str) -> None:
    status, answer, _ = server.request(path, body)
    assert status == 400, answer
    assert message in answer["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)  # fmt: skip
BODY = st.fixed_dictionaries({}, optional={
    "content": st.text() | st.lists(st.text(max_size=5) | st.integers(0, 49151), max_size=4) | JSON,
    "prompt": st.text() | JSON, "tokens": st.lists(st.integers(0, 60000)) | JSON, "add_special": st.booleans() | JSON,
    "with_pieces": st.booleans() | JSON, "parse_special": st.booleans() | JSON, "return_token_strs": st.booleans(),
    "messages": st.just(user("Hi")) | JSON, "model": st.none() | st.text(max_size=5) | JSON,
    "add_generation_prompt": st.booleans() | JSON, "tools": JSON,
})  # fmt: skip


def test_random_bodies_cause_no_server_error(server: ServerProcess) -> None:
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(("tokenize", "detokenize", "apply-template", "chat/completions/input_tokens")), BODY)
    def send(path: str, body: dict[str, Any]) -> None:
        status, answer, _ = server.request(f"/{path}", body)
        assert status < 500, answer

    send()
    assert "Internal error" not in "".join(server.errors)
