"""An answer token by token: shaded by probability, with the alternatives of each token on hover or focus.

Everything here comes out of a model and goes into a page, so every text is escaped; tests/ui feeds it scripts. No
script is needed to look at it either: the alternatives are shown by style.css.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from quire.ui.client import Token

VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}  # what would leave no mark

LEGEND = (
    '<p class="legend"><span class="tok p0">likely</span> <span class="tok p2">less so</span> '
    '<span class="tok p4">unlikely</span> <span class="tok drafted">drafted</span> '
    "· hover, tap, or Tab and arrow keys for the alternatives</p>"
)
NOTHING = '<p class="hint">Send a message: its tokens will be here, shaded by how likely the model thought them.</p>'


def tokens_html(tokens: Sequence[Token]) -> str:
    """The tokens as spans. Shades go from p0 (at least 90% likely) to p4 (under 10%)."""
    if not tokens:
        return NOTHING
    spans = "".join(token_span(token, first=i == 0) for i, token in enumerate(tokens))
    return f'{LEGEND}<div class="tokens" role="group" aria-label="Tokens of the answer">{spans}</div>'


def token_span(token: Token, *, first: bool) -> str:
    """One token with its panel. Only the first is a tab stop; arrow keys lead to the others (page.js)."""
    probability = math.exp(min(token.logprob, 0.0))
    label = f"{shown(token.text)}, {percent(probability)}" + ", an accepted draft" * token.drafted
    rows = "".join(
        f'<tr class="{"chosen" if text == token.text else ""}"><td><code>{escape(shown(text))}</code></td>'
        f'<td>{percent(p)}</td><td><i style="width:{100 * p:.1f}%"></i></td></tr>'
        for text, p in ((text, math.exp(min(logprob, 0.0))) for text, logprob in token.top)
    )
    if all(text != token.text for text, _ in token.top):
        rows += (
            f'<tr class="chosen"><td><code>{escape(shown(token.text))}</code></td><td>{percent(probability)}</td>'
            f'<td><i style="width:{100 * probability:.1f}%"></i></td></tr>'
        )
    breaks = "<br>" * token.text.count("\n")
    kind = f"tok p{shade(probability)}" + " drafted" * token.drafted
    return (
        f'<span class="{kind}" tabindex="{0 if first else -1}" role="img" aria-label="{escape(label)}">'
        f"{escape(shown(token.text, spaces=False))}"
        f'<span class="alts" aria-hidden="true"><table>{rows}</table></span></span>{breaks}'
    )


def shade(probability: float) -> int:
    return sum(probability < bound for bound in (0.9, 0.6, 0.3, 0.1))


def percent(probability: float) -> str:
    """As people write it: 99.9%, 12%, 0.4%, <0.1%."""
    value = 100 * probability
    if value < 0.1:
        return "<0.1%"
    return f"{value:.1f}%" if value < 10 or 99 <= value < 99.95 else f"{value:.0f}%"


def shown(text: str, *, spaces: bool = True) -> str:
    """A token's text with marks for what cannot be seen."""
    for character, mark in VISIBLE.items():
        text = text.replace(character, mark)
    if spaces:
        text = text.replace(" ", "␣")
    return text or "∅"
