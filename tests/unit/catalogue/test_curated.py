"""The shipped catalogue, and catalogues of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import curated
from edgechat.errors import CatalogueError
from edgechat.modelfile.layers import read_layers
from edgechat.modelfile.split import read_header

SHIPPED = curated.read_catalogue_file(curated.builtin_catalogue_file())


def test_shipped_models_fit_machines_from_1_to_64_gb() -> None:
    assert len(SHIPPED) >= 25
    params = [model.dimensions.n_params for model in SHIPPED if model.dimensions.n_params]
    assert min(params) < 140e6
    assert max(params) > 35e9
    for ram_gb in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        fitting = [
            max(size for size in model.sizes().values() if size < ram_gb * 0.75e9)
            for model in SHIPPED
            if model.is_default and any(size < ram_gb * 0.75e9 for size in model.sizes().values())
        ]
        # The largest one that fits uses a good part of the memory.
        assert max(fitting) > min(ram_gb, 40) * 0.25e9, ram_gb


@pytest.mark.parametrize("model", SHIPPED, ids=lambda model: model.id)
def test_sizes_are_plausible_and_have_a_source(model: curated.CatalogueModel) -> None:
    assert model.figures_source
    assert model.licence or not model.is_default
    if model.is_default:
        assert model.licence in {"apache-2.0", "MIT"}
    sizes = list(model.sizes().items())
    if model.dimensions.n_params:
        for quant, size in sizes:
            bits = 8 * size / model.dimensions.n_params
            assert 1.5 < bits < 17, (quant, bits)  # large embeddings raise the average of the smallest models
    by_quant = dict(sizes)
    if {"Q4_K_M", "Q8_0"} <= by_quant.keys():
        assert by_quant["Q4_K_M"] < by_quant["Q8_0"]


def test_dimensions_of_the_starter_match_its_file(starter: Path) -> None:
    model = next(model for model in SHIPPED if model.id == "smollm2-135m")
    header = read_header(starter)
    layers = read_layers(header)
    first = layers.layers[0]
    dimensions = model.dimensions
    assert (dimensions.n_params, dimensions.n_layers, dimensions.n_embd, dimensions.n_vocab) == (
        header.n_params, len(layers.layers), layers.n_embd, layers.n_vocab,
    )  # fmt: skip
    assert (dimensions.n_heads, dimensions.n_kv_heads, dimensions.head_dim, dimensions.n_ff) == (
        first.n_head, first.n_head_kv, first.key_length, first.n_ff,
    )  # fmt: skip
    assert model.n_ctx_train == layers.n_ctx_train
    quant_file = next(s for s in model.sources if s.package).quants["Q4_1"]
    assert quant_file.size_bytes == header.file_bytes == starter.stat().st_size


GOOD = '[[model]]\nid = "x"\nname = "X"\nfamily = "F"\n[[model.source]]\nrepo = "a/b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[model]\n", r"models\.toml:1 is not valid TOML"),
        (GOOD + "quants = 3\n", r"model\[0\]\.source\[0\]\.quants"),
        (
            GOOD + "[model.source.quants]\nQ4_0 = { bytes = -1 }\n",
            r"model\[0\]\.source\[0\]\.quants\.Q4_0\.bytes is -1",
        ),
        (GOOD + '[model.source.quants]\nQ4_0 = { sha256 = "XYZ" }\n', r"quants\.Q4_0\.sha256"),
        (GOOD + "[model.source.quants]\nQ4_0 = { size = 1 }\n", r"unknown field size.*quants"),
        (GOOD.replace('id = "x"', 'id = "X y"'), r"model\[0\]\.id"),
        (GOOD + GOOD, r"model\[1\]\.id is 'x', which is also the id"),
        (GOOD.replace('repo = "a/b"', 'repo = "../b/c"'), r"source\[0\]\.repo"),
        (GOOD.replace('repo = "a/b"', 'repo = "a/b"\nurl = "http://x"'), "exactly one of repo, url and package"),
        (GOOD.replace("name", "nmae"), "nmae"),
        (GOOD.split("[[model.source]]", maxsplit=1)[0], "source"),
        ('model = "x"', r"\bmodel\b"),
        (GOOD.replace('name = "X"', 'name = "X"\nthinking = "maybe"'), "no, toggle or always"),
    ],
)
def test_invalid_catalogue_is_reported_with_file_and_location(text: str, message: str) -> None:
    paths.config_dir().mkdir(parents=True)
    file = paths.config_dir() / "models.toml"
    file.write_text(text)
    with pytest.raises(CatalogueError, match=message) as error:
        curated.read_catalogue_file(file)
    assert str(file) in str(error.value)


def test_user_catalogue_adds_and_replaces_models() -> None:
    paths.config_dir().mkdir(parents=True)
    (paths.config_dir() / "models.toml").write_text(GOOD + GOOD.replace('"x"', '"smollm2-135m"'))
    curated.load_catalogue.cache_clear()
    try:
        models = curated.load_catalogue()
    finally:
        curated.load_catalogue.cache_clear()
    assert len(models) == len(SHIPPED) + 1
    assert models["smollm2-135m"].name == "X"


def test_file_is_matched_by_its_repository_or_its_name() -> None:
    for model_id, arguments in (
        ("qwen3-4b-instruct-2507", ("", "whatever", "Qwen3-4B-Instruct-2507-Q4_K_M.gguf")),
        ("qwen3-4b", ("", "", "Qwen3-4B-Q8_0.gguf")),
        ("smollm2-135m", ("unsloth/SmolLM2-135M-Instruct-GGUF", "x")),
    ):
        model = curated.guess_model(*arguments)
        assert model is not None
        assert model.id == model_id
    assert curated.guess_model("", "", "my-own.gguf") is None
