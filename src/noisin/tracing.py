"""Staying out of the sight of torch.compile."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch._compile import _disable_dynamo


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as one that dynamo calls and does not look into.

    Dynamo takes a second or two to import and is left alone where nobody has imported it.
    """
    hidden = _disable_dynamo(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (hidden if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return call
