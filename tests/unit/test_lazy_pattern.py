"""Tests of the regular expressions that are compiled at first use."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import edgechat
from edgechat.lazy_pattern import LazyPattern

MODULES = [module.name for module in pkgutil.walk_packages(edgechat.__path__, "edgechat.")]


def test_pattern_is_compiled_once_at_first_use() -> None:
    pattern = LazyPattern(rb"a+")
    assert pattern.compiled is pattern.compiled
    assert pattern.compiled.findall(b"aab") == [b"aa"]
    broken = LazyPattern("(")
    with pytest.raises(re.error):
        _ = broken.compiled


def test_every_lazy_pattern_of_the_package_is_valid() -> None:
    patterns = [
        value
        for name in MODULES
        if name.startswith(("edgechat.tui", "edgechat.terminal", "edgechat.decode_errors"))
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, LazyPattern)
    ]
    assert len(patterns) > 15
    for pattern in patterns:
        assert isinstance(pattern.compiled, re.Pattern)
