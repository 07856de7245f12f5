"""Telling prompts from answers."""

from __future__ import annotations

from dali.policies.signals import Step


class Prompt:
    """`here`: whether the present step holds any token of a prompt; a system whose paper has one request at a time treats such a
    step as one of prefill."""

    def __init__(self) -> None:
        self.here = False

    def begin(self, step: Step) -> None:
        self.here = bool(step.prefill.any())
