"""Which form a model writes its calls in."""

from __future__ import annotations

from dali.engine.text.calls import glm, llama, mistral, sections, tagged_json, xml
from dali.engine.text.calls.form import Form

FORMS = [  # the more particular first: several use the same tag around their own
    *sections.FORMS, *xml.FORMS, *glm.FORMS, *mistral.FORMS, *tagged_json.FORMS, *llama.FORMS,
]  # fmt: skip


def form_of(template: str) -> Form | None:
    """The one that a chat template asks for; None where it is none of those known."""
    return next((form for form in FORMS if form.fits(template)), None)
