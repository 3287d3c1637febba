"""Places in the held-out text at which a model is sure of the next token.

Whoever runs the model elsewhere can ask for that token without its probability. Kernels differ
between machines, which turns around what is a near tie; where the most likely token leads by a
nat, a model that is computed as it should be still finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from quantlib.evaluation.metrics import Leads

WINDOWS = 16
"""So many windows are looked at, the first ones."""

POSITIONS = 256
"""And so many positions of each: what comes before a probe has to be read to ask for it."""

_PROBES = 64
_OF_A_TOKEN = 4
_MARGIN = 1.0


def pick(leads: Sequence[Leads]) -> list[tuple[int, int, int]]:
    """Picks probes, spread over windows and positions, in their order.

    A token is expected at a few places only: a model that is broken often says one token always.

    Args:
        leads: Of each window, what its states predict, the first state first.

    Returns:
        ``(window, position, token)`` of each: the tokens of the window before the position are
        followed by the token. At most 64; fewer where the model is sure of little.
    """
    found = [
        (window, position, int(token))
        for window, lead in enumerate(leads)
        for position, (token, margin) in enumerate(zip(lead.tokens, lead.margins, strict=True), 1)
        if margin >= _MARGIN
    ]
    times: Counter[int] = Counter()
    picked = []
    for index in np.random.default_rng(0).permutation(len(found)):
        probe = found[index]
        if times[probe[2]] < _OF_A_TOKEN:
            times[probe[2]] += 1
            picked.append(probe)
    return sorted(picked[:_PROBES])
