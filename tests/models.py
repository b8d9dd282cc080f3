"""Tiny models with random weights, written with the gguf package in milliseconds."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from edgechat.planner.context_growth import ContextGrowth, ContextSize
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model
from tests.vocabularies import add_bpe_vocabulary

N_EMBD = 64
N_HEAD = 4
N_FF = 128
N_LAYER = 2
N_CTX = 256
N_EXPERT = 4
N_WINDOW = 48
D_INNER = 2 * N_EMBD
D_STATE = 8
D_CONV = 4
DT_RANK = 4
Kind = Literal["llama", "moe", "sliding", "mamba", "hybrid", "hybrid sliding"]
KINDS: tuple[Kind, ...] = ("llama", "moe", "sliding", "mamba", "hybrid", "hybrid sliding")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
_THINKING_MESSAGES = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}"
)
THINKING_TEMPLATE = _THINKING_MESSAGES + (
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n"
    "{% endif %}{% endif %}"
)
OPEN_THOUGHT_TEMPLATE = _THINKING_MESSAGES + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
CONTROL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def open_context(model: Model, **options: Any) -> Context:
    """Create a context of one sequence; `options` overrides fields of the plan or of its load options."""
    return Context(model, make_manual_plan(str(model.path), **{"n_seqs": 1, **options}))


def growth(initial_n_ctx: int, max_n_ctx: int, cell_bytes: int = 0) -> ContextGrowth:
    """Return the growth of a context whose cells need `cell_bytes` each."""
    return ContextGrowth(sizes=tuple(ContextSize(n, n * cell_bytes) for n in (initial_n_ctx, max_n_ctx)))


def write_tiny_llama(
    path: Path, *, template: str | None = TEMPLATE, seed: int = 0, architecture: str = "llama", pre_tokenizer: str = "",
    adds_eos: bool = False, can_infill: bool = False, n_ctx: int = N_CTX,
) -> Path:  # fmt: skip
    """Write a llama model with random weights, a byte-level vocabulary and control tokens.

    The vocabulary is of SentencePiece, unless `pre_tokenizer` names a pre-tokenizer of byte pair encoding. With
    `can_infill`, the control tokens of the roles also mark the prefix, the suffix and the middle for infilling.
    """
    with open_writer(path, architecture, n_ctx) as writer:
        _add_heads(writer)
        n_vocab = add_bpe_vocabulary(writer, pre_tokenizer) if pre_tokenizer else add_vocabulary(writer)
        if adds_eos:
            writer.add_add_eos_token(True)
        for i, role in enumerate(("pre", "suf", "mid") if can_infill else ()):
            writer.add_uint32(f"tokenizer.ggml.fim_{role}_token_id", n_vocab - len(CONTROL) + i)
        if template is not None:
            writer.add_chat_template(template)
        _add_llama(TinyTensors(writer, seed), n_vocab)
    return path


def write_parrot(
    path: Path, reply: str, *, is_endless: bool = False, template: str = TEMPLATE, n_ctx: int = 2048
) -> Path:
    """Write a llama model that answers every prompt with `reply`, whose characters must all differ.

    If `is_endless`, the model repeats the reply without end. Prompts must end with <|assistant|> or a newline.

    The embedding of each token is a unit vector, which the layers do not change and which the output matrix maps to
    the next token. So rounding differences between machines cannot change the reply.
    """
    with open_writer(path, "llama", n_ctx) as writer:
        _add_heads(writer)
        n_vocab = add_vocabulary(writer)
        writer.add_chat_template(template)
        first_word = 3 + 256  # token of "!", see add_vocabulary
        words = [first_word + ord(c) - ord("!") for c in reply]
        sequence = [n_vocab - 2, *words, words[0] if is_endless else 2]  # from <|assistant|> to </s>
        embedding, output = np.zeros((n_vocab, N_EMBD)), np.zeros((n_vocab, N_EMBD))
        for i, (token, following) in enumerate(itertools.pairwise(sequence)):
            embedding[token, i] = output[following, i] = 1.0
        embedding[3 + ord("\n")] = embedding[sequence[0]]
        tensors = TinyTensors(writer, 0, scale=0.0)
        tensors.constant("token_embd.weight", embedding)
        tensors.constant("output.weight", output)
        _add_layers(tensors)
        tensors.ones("output_norm.weight")
    return path


@contextlib.contextmanager
def open_writer(path: Path, architecture: str, n_ctx: int) -> Iterator[gguf.GGUFWriter]:
    """Yield a writer of a model with the common metadata, and write the file at the end of the `with` block."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_layer_norm_rms_eps(1e-5)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def list_vocabulary() -> list[tuple[str, gguf.TokenType]]:
    """Return the tokens of a SentencePiece vocabulary: unknown, BOS, EOS, byte tokens, some words, control tokens."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    words = [chr(c) for c in range(33, 127)] + ["▁", "▁a", "▁the", "he", "th", "in", "er", "an"]
    tokens += [(word, kinds.NORMAL) for word in words]
    tokens += [(text, kinds.CONTROL) for text in CONTROL]
    return tokens


def add_vocabulary(writer: gguf.GGUFWriter) -> int:
    """Add the vocabulary of `list_vocabulary` to a model file. Return its size."""
    tokens = list_vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(tokens)


class TinyTensors:
    """Adds random tensors to a model."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int, scale: float = 1.0) -> None:
        self._writer = writer
        self._scale = scale
        self._random = np.random.default_rng(seed)

    def matrix(self, name: str, *shape: int) -> None:
        """Add a matrix scaled so that activations keep their magnitude; the last dimension is the input."""
        self._writer.add_tensor(name, self._random.normal(0, self._scale * shape[-1] ** -0.5, shape).astype(np.float32))

    def ones(self, name: str, size: int | None = None) -> None:
        self._writer.add_tensor(name, np.ones(size or N_EMBD, dtype=np.float32))

    def norm(self, name: str) -> None:
        self.ones(name + ".weight")
        self.matrix(name + ".bias", N_EMBD)

    def constant(self, name: str, values: np.ndarray[Any, Any]) -> None:
        self._writer.add_tensor(name, values.astype(np.float32))

    def ends(self, n_vocab: int, *, norm: str = "output_norm", output: bool = True) -> None:
        self.matrix("token_embd.weight", n_vocab, N_EMBD)
        if output:
            self.matrix("output.weight", n_vocab, N_EMBD)
        self.ones(norm + ".weight")

    def attention(self, start: str) -> None:
        self.matrix(start + "attn_q.weight", N_EMBD, N_EMBD)
        self.matrix(start + "attn_k.weight", N_EMBD // 2, N_EMBD)
        self.matrix(start + "attn_v.weight", N_EMBD // 2, N_EMBD)
        self.matrix(start + "attn_output.weight", N_EMBD, N_EMBD)

    def feed_forward(self, start: str) -> None:
        self.matrix(start + "ffn_gate.weight", N_FF, N_EMBD)
        self.matrix(start + "ffn_up.weight", N_FF, N_EMBD)
        self.matrix(start + "ffn_down.weight", N_EMBD, N_FF)

    def experts(self, start: str) -> None:
        self.matrix(start + "ffn_gate_inp.weight", N_EXPERT, N_EMBD)
        self.matrix(start + "ffn_gate_exps.weight", N_EXPERT, N_FF, N_EMBD)
        self.matrix(start + "ffn_up_exps.weight", N_EXPERT, N_FF, N_EMBD)
        self.matrix(start + "ffn_down_exps.weight", N_EXPERT, N_EMBD, N_FF)


def _add_llama(tensors: TinyTensors, n_vocab: int, *, experts: bool = False) -> None:
    tensors.ends(n_vocab)
    _add_layers(tensors, experts=experts)


def _add_layers(tensors: TinyTensors, *, experts: bool = False) -> None:
    for block in range(N_LAYER):
        start = f"blk.{block}."
        tensors.ones(start + "attn_norm.weight")
        tensors.ones(start + "ffn_norm.weight")
        tensors.attention(start)
        (tensors.experts if experts else tensors.feed_forward)(start)


def _add_gemma(tensors: TinyTensors, n_vocab: int) -> None:
    tensors.ends(n_vocab, output=False)
    for block in range(N_LAYER):
        start = f"blk.{block}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            tensors.ones(f"{start}{norm}.weight")
        tensors.attention(start)
        tensors.feed_forward(start)


def _add_mamba(tensors: TinyTensors, n_vocab: int) -> None:
    tensors.ends(n_vocab)
    for block in range(N_LAYER):
        start = f"blk.{block}."
        tensors.ones(start + "attn_norm.weight")
        tensors.matrix(start + "ssm_in.weight", 2 * D_INNER, N_EMBD)
        tensors.matrix(start + "ssm_conv1d.weight", D_INNER, D_CONV)
        tensors.constant(start + "ssm_conv1d.bias", np.zeros(D_INNER))
        tensors.matrix(start + "ssm_x.weight", DT_RANK + 2 * D_STATE, D_INNER)
        tensors.matrix(start + "ssm_dt.weight", D_INNER, DT_RANK)
        # A small step size, so that the state decays slowly.
        tensors.constant(start + "ssm_dt.bias", np.full(D_INNER, -3.0))
        tensors.constant(start + "ssm_a", -np.tile(np.arange(1.0, D_STATE + 1), (D_INNER, 1)))
        tensors.constant(start + "ssm_d", np.zeros(D_INNER))
        tensors.matrix(start + "ssm_out.weight", N_EMBD, D_INNER)


def _add_lfm(tensors: TinyTensors, n_vocab: int) -> None:
    tensors.ends(n_vocab, norm="token_embd_norm")
    for block in range(N_LAYER):
        start = f"blk.{block}."
        tensors.ones(start + "attn_norm.weight")
        tensors.ones(start + "ffn_norm.weight")
        tensors.feed_forward(start)
        if block % 2:
            tensors.attention(start)
            tensors.ones(start + "attn_q_norm.weight", N_EMBD // N_HEAD)
            tensors.ones(start + "attn_k_norm.weight", N_EMBD // N_HEAD)
        else:
            tensors.matrix(start + "shortconv.conv.weight", N_EMBD, D_CONV)
            tensors.matrix(start + "shortconv.in_proj.weight", 3 * N_EMBD, N_EMBD)
            tensors.matrix(start + "shortconv.out_proj.weight", N_EMBD, N_EMBD)


def _add_heads(writer: gguf.GGUFWriter) -> None:
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD // 2)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)


def write_tiny(path: Path, kind: Kind, *, seed: int = 0, n_ctx: int = 2048) -> Path:
    """Write a model of a `kind` with random weights; the kind determines the type of its KV memory."""
    architecture = {"moe": "llama", "sliding": "gemma2", "hybrid": "lfm2", "hybrid sliding": "lfm2"}.get(kind, kind)
    with open_writer(path, architecture, n_ctx) as writer:
        n_vocab = add_vocabulary(writer)
        writer.add_chat_template(TEMPLATE)
        tensors = TinyTensors(writer, seed)
        if kind == "mamba":
            writer.add_head_count(0)
            writer.add_ssm_conv_kernel(D_CONV)
            writer.add_ssm_inner_size(D_INNER)
            writer.add_ssm_state_size(D_STATE)
            writer.add_ssm_time_step_rank(DT_RANK)
            _add_mamba(tensors, n_vocab)
        elif kind in ("hybrid", "hybrid sliding"):
            writer.add_head_count(N_HEAD)
            writer.add_head_count_kv([N_HEAD // 2 * (block % 2) for block in range(N_LAYER)])
            writer.add_rope_dimension_count(N_EMBD // N_HEAD)
            writer.add_shortconv_l_cache(D_CONV)
            if kind == "hybrid sliding":
                writer.add_sliding_window(N_WINDOW)
            _add_lfm(tensors, n_vocab)
        elif kind == "sliding":
            _add_heads(writer)
            writer.add_key_length(N_EMBD // N_HEAD)
            writer.add_value_length(N_EMBD // N_HEAD)
            writer.add_sliding_window(N_WINDOW)
            _add_gemma(tensors, n_vocab)
        else:
            _add_heads(writer)
            if kind == "moe":
                writer.add_expert_count(N_EXPERT)
                # Use all experts: otherwise rounding could decide between two experts with almost the same score.
                writer.add_expert_used_count(N_EXPERT)
            _add_llama(tensors, n_vocab, experts=kind == "moe")
    return path


def copy_metadata(source: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """Copy all metadata keys to `writer`, except the keys that the writer adds itself."""
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, *element = field.types
        writer.add_key_value(key, field.contents(), kind, sub_type=element[0] if element else None)


def split_tiny(directory: Path) -> list[Path]:
    """Write a tiny llama model to whole.gguf and as a split model; return the paths of the split files."""
    whole = gguf.GGUFReader(write_tiny_llama(directory / "whole.gguf"))
    writer = gguf.GGUFWriter(directory / "tiny-Q4_K_M.gguf", "llama", split_max_tensors=8)
    copy_metadata(whole, writer)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(directory.glob("tiny-Q4_K_M-*.gguf"))


def write_tiny_bert(path: Path, *, is_reranker: bool = False, n_ctx: int = 128) -> Path:
    """Write a random embedding model with BERT's architecture and vocabulary type, and mean pooling.

    With `is_reranker`, it has a classifier with one output instead.
    """
    with open_writer(path, "bert", n_ctx) as writer:
        writer.add_layer_norm_eps(1e-5)
        writer.add_head_count(N_HEAD)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.RANK if is_reranker else gguf.PoolingType.MEAN)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{chr(c)}" for c in range(97, 123))]
        words += [chr(c) for c in range(97, 123)] + ["▁hello", "▁world", "▁the"]
        kinds = [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(words) - 5)
        writer.add_tokenizer_model("bert")
        writer.add_token_list(words)
        writer.add_token_types(kinds)
        writer.add_token_type_count(2)
        writer.add_unk_token_id(1)
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(3)
        writer.add_sep_token_id(3)
        writer.add_pad_token_id(0)
        tensors = TinyTensors(writer, 0)
        tensors.matrix("token_embd.weight", len(words), N_EMBD)
        tensors.matrix("token_types.weight", 2, N_EMBD)
        tensors.matrix("position_embd.weight", n_ctx, N_EMBD)
        tensors.norm("token_embd_norm")
        for block in range(N_LAYER):
            start = f"blk.{block}."
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                tensors.matrix(f"{start}{name}.weight", N_EMBD, N_EMBD)
                tensors.matrix(f"{start}{name}.bias", N_EMBD)
            tensors.norm(start + "attn_output_norm")
            tensors.matrix(start + "ffn_up.weight", N_FF, N_EMBD)
            tensors.matrix(start + "ffn_up.bias", N_FF)
            tensors.matrix(start + "ffn_down.weight", N_EMBD, N_FF)
            tensors.matrix(start + "ffn_down.bias", N_EMBD)
            tensors.norm(start + "layer_output_norm")
        if is_reranker:
            tensors.matrix("cls.weight", N_EMBD, N_EMBD)
            tensors.matrix("cls.bias", N_EMBD)
            tensors.matrix("cls.output.weight", 1, N_EMBD)
            tensors.matrix("cls.output.bias", 1)
    return path


def write_tiny_qwen_embedder(path: Path) -> Path:
    """Write a random embedding model with Qwen3's architecture, which pools the last token."""
    with open_writer(path, "qwen3", N_CTX) as writer:
        writer.add_pooling_type(gguf.PoolingType.LAST)
        _add_tiny_qwen(writer)
    return path


def write_tiny_qwen_reranker(path: Path) -> Path:
    """Write a random reranker with Qwen3's architecture, which has two labels and a template of the input."""
    template = "<|im_start|>Judge.<Query>: {query}\n<Document>: {document}<|im_end|><|im_start|>"
    with open_writer(path, "qwen3", N_CTX) as writer:
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_chat_template([{"name": "rerank", "template": template}])
        _add_tiny_qwen(writer).matrix("cls.output.weight", 2, N_EMBD)
    return path


def _add_tiny_qwen(writer: gguf.GGUFWriter) -> TinyTensors:
    _add_heads(writer)
    writer.add_key_length(N_EMBD // N_HEAD)
    writer.add_value_length(N_EMBD // N_HEAD)
    n_vocab = add_bpe_vocabulary(writer, "qwen2")
    tensors = TinyTensors(writer, 0)
    tensors.ends(n_vocab)
    _add_layers(tensors)
    for block in range(N_LAYER):
        tensors.ones(f"blk.{block}.attn_q_norm.weight", N_EMBD // N_HEAD)
        tensors.ones(f"blk.{block}.attn_k_norm.weight", N_EMBD // N_HEAD)
    return tensors
