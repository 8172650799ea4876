"""Every form, in the order of the page."""

from __future__ import annotations

from tests.forms import exported, folders, modules, others, places, state_dicts, training

GROUPS = (
    state_dicts.group,
    training.group,
    modules.group,
    places.group,
    exported.group,
    folders.files,
    folders.group,
    others.group,
)
FORMS = [form for group in GROUPS for form in group.forms]
