"""Prompts: what a card puts around a caller's text."""

from __future__ import annotations

from dataclasses import dataclass

from mixpeek_ray.catalog.cards import Prompts
from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.families.base import Role


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A template with its instruction filled in: what comes before a text and what comes after it."""

    head: str = ""
    tail: str = ""

    def around(self, text: str) -> str:
        """Return ``text`` as the model wants it."""
        return self.head + text + self.tail

    def __bool__(self) -> bool:
        return bool(self.head or self.tail)


def prompt_for(prompts: Prompts, role: Role, instruction: str | None) -> Prompt:
    """Return the prompt of texts in ``role``.

    Raises ``ValidationError`` when the caller gives an instruction that the model has no place for.
    """
    template = prompts.query if role is Role.QUERY else prompts.document
    if instruction is not None and (template is None or "{instruction}" not in template):
        raise ValidationError(
            f"The model takes no instruction with input_type={role}: leave `instruction` out.", field="instruction"
        )
    if template is None:
        return Prompt()
    # Divided first, so that an instruction which holds `{text}` stays what it is.
    head, _, tail = template.partition("{text}")
    filling = instruction if instruction is not None else prompts.instruction or ""
    return Prompt(head=head.replace("{instruction}", filling), tail=tail.replace("{instruction}", filling))
