"""Shape annotations: jaxtyping's where it is installed, plain tensors where it is not.

Letters: T time, B batch, I input, H hidden, L layers, K samples, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:  # torch alone is enough to use the layers

        class Float:
            """Stands for ``jaxtyping.Float``: ``Float[Tensor, "T B H"]`` is ``Tensor``."""

            def __class_getitem__(cls, item):
                """Drop the shape."""
                return item[0]

        Bool = Int = Float

__all__ = ["Bool", "Float", "Int"]
