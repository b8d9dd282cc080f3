"""Ranges of mapped model files that a loaded model does not need."""

from __future__ import annotations

import msgspec

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.mapped_file import FileRange, list_unused_ranges
from tests.unit.planner.profiles import I8, Q4_0, llama, options


def make_profile(*tensors: Tensor, data_offsets: tuple[int, ...] = (1000,)) -> ModelProfile:
    return msgspec.structs.replace(llama().with_tensors("m.gguf", tensors), data_offsets=data_offsets)


def test_ranges_cover_the_tensors_with_a_copy_and_no_others() -> None:
    profile = make_profile(
        Tensor("output.weight", (64, 2), Q4_0, 0, 100),
        Tensor("token_embd.weight", (64, 2), I8, 100, 50),
        Tensor("blk.0.norm", (64,), Q4_0, 150, 10),  # vectors are not repacked
        Tensor("blk.0.w", (64, 2), Q4_0, 160, 40),
        Tensor("blk.0.x", (64, 2), I8, 200, 60),
        Tensor("blk.1.w", (64, 2), Q4_0, 260, 40),
    )
    assert list_unused_ranges(profile, options(profile, 512)) == (
        FileRange(0, 1000, 1150), FileRange(0, 1160, 1200), FileRange(0, 1260, 1300),
    )  # fmt: skip
    assert list_unused_ranges(profile, options(profile, 512), frozenset()) == ()
    assert list_unused_ranges(profile, options(profile, 512, use_mmap=False)) == ()
    assert list_unused_ranges(profile, options(profile, 512, use_extra_bufts=False)) == ()


def test_token_embedding_that_is_the_output_matrix_is_unused_only_if_it_has_a_copy() -> None:
    for type_id, n_ranges in ((Q4_0, 1), (I8, 0)):
        profile = make_profile(
            Tensor("token_embd.weight", (64, 2), type_id, 0, 100), Tensor("blk.0.w", (64, 2), Q4_0, 200, 40)
        )
        ranges = list_unused_ranges(profile, options(profile, 512))
        assert ranges[n_ranges:] == (FileRange(0, 1200, 1240),)


def test_ranges_of_a_split_model_count_from_the_start_of_each_file() -> None:
    profile = make_profile(
        Tensor("blk.0.w", (64, 2), Q4_0, 0, 40, 0), Tensor("blk.1.w", (64, 2), Q4_0, 0, 40, 1),
        data_offsets=(1000, 96),
    )  # fmt: skip
    assert list_unused_ranges(profile, options(profile, 512)) == (FileRange(0, 1000, 1040), FileRange(1, 96, 136))


def test_layers_on_a_gpu_have_a_copy() -> None:
    tensors = tuple(Tensor(f"blk.{i}.w", (64, 2), I8, 100 * i, 100) for i in range(16))
    profile = make_profile(*tensors)
    assert list_unused_ranges(profile, options(profile, 512, n_gpu_layers=5)) == (FileRange(0, 2200, 2600),)
