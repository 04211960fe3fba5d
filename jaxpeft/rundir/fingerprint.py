"""What differs between the fingerprints of a saved run and of one that continues it."""

import json

from jaxpeft import tree


def differences(then: str | None, now: str | None) -> str:
    """What differs, in brackets, where both are JSON objects of settings, or ""."""
    try:
        texts = (json.loads(text or "") for text in (then, now))
        before, after = (dict(tree.walk(settings)) for settings in texts)
    except (ValueError, AttributeError):
        return ""  # a digest
    named = [
        f"{key}: {json.dumps(before.get(key))} then, {json.dumps(after.get(key))} now"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    return f" ({'; '.join(named[:5])}{'; ...' if len(named) > 5 else ''})"
