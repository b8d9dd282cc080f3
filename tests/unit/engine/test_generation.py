"""Values in the messages about a request."""

from __future__ import annotations

from edgechat.engine.generation import CacheMiss, GenerationStats, PromptCacheUse

CHANGED = CacheMiss(common_tokens=212, repeated_tokens=11_640, text_before="cch=", text="5f3a1;")


def test_description_names_the_difference_and_its_cost() -> None:
    text = CHANGED.describe()
    assert text.startswith("After 212 tokens, the prompt differs from an earlier one, at '5f3a1;' after 'cch='.")
    assert "11,640 later tokens are the same" in text


def test_description_for_a_report_has_no_text_of_the_prompt() -> None:
    text = CHANGED.describe(shows_text=False)
    assert "212 tokens" in text
    assert "5f3a1" not in text
    assert "cch" not in text


def test_description_of_tokens_that_left_the_cache() -> None:
    miss = CacheMiss(common_tokens=3000, uncached_tokens=2500)
    assert miss.describe().startswith("2,500 tokens that an earlier prompt has, too, had left the cache")


def test_use_is_summed() -> None:
    use = PromptCacheUse()
    for n_cached, miss in ((0, CHANGED), (90, None)):
        stats = GenerationStats(
            prompt_tokens=100, cached_tokens=n_cached, completion_tokens=1, ttft_s=0.0, prefill_tps=0.0, decode_tps=0.0
        )
        use = use.add(stats, miss)
        assert use.last_miss is miss
    assert (use.n_prompts, use.prompt_tokens, use.cached_tokens) == (2, 200, 90)
    assert (use.last_prompt_tokens, use.last_cached_tokens) == (100, 90)
