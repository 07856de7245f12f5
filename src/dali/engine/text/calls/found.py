"""Which form a model writes its calls in."""

from __future__ import annotations

from collections.abc import Iterable

from dali.engine.text.calls import glm, llama, mistral, parsed, sections, tagged_json, xml
from dali.engine.text.calls.form import Form

FORMS = [  # the more particular first: several use the same tag around their own
    *sections.FORMS, *xml.FORMS, *glm.FORMS, *mistral.FORMS, *parsed.FORMS, *tagged_json.FORMS, *llama.FORMS,
]  # fmt: skip


def form_of(template: str, tokens: Iterable[str] = ()) -> Form | None:
    """The one that a chat template asks for, or else that the vocabulary has special tokens for; None where it is none of those
    known."""
    for text in (template, " ".join(tokens)):
        if found := next((form for form in FORMS if form.fits(text)), None):
            return found
    return None
