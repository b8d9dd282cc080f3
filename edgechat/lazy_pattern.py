"""Regular expressions that are compiled at first use, because compiling them would delay the start of the program."""

from __future__ import annotations

import re
from functools import cached_property
from typing import AnyStr, Generic


class LazyPattern(Generic[AnyStr]):
    """Regular expression for module constants, which is compiled when `compiled` is read for the first time."""

    def __init__(self, source: AnyStr) -> None:
        self.source: AnyStr = source

    @cached_property
    def compiled(self) -> re.Pattern[AnyStr]:
        """The compiled expression. Raises re.error if it is invalid."""
        return re.compile(self.source)
