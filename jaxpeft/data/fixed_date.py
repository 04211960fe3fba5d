"""Chat templates that write today's date: the same tokens on every day.

The tokens, and with them the data's fingerprint, would change overnight: a run could
not be continued after midnight, and its adapter would know one date alone.
"""

import json
from datetime import datetime
from functools import lru_cache

# The one that Llama 3's templates themselves fall back to.
DATE = datetime(2024, 7, 26)
# For templates that take the date as a variable.
DATE_STRING = DATE.strftime("%d %b %Y")

_CODES = "aAbBcdDFhHIjmMpSTuUVwWxXyY"
_UNPADDED = "dmHIMSj"


@lru_cache(maxsize=16)
def with_fixed_date(template: str) -> str:
    """The template, with `strftime_now` being that of `DATE`.

    transformers gives templates a function of that name and lets no other take its
    place, but a macro in the template itself may.

    Args:
        template: its source, in Jinja.
    """
    if "strftime_now" not in template:
        return template
    codes = {f"%{code}": DATE.strftime(f"%{code}") for code in _CODES}
    codes |= {f"%-{c}": DATE.strftime(f"%{c}").lstrip("0") or "0" for c in _UNPADDED}
    replaced = "".join(
        f".replace({json.dumps(code)}, {json.dumps(text)})"
        for code, text in codes.items()
    )
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}"
    # Nothing is written, and what stood at the start of a line still does.
    end = "{% endmacro %}\n" if template[:1].isspace() else "{% endmacro +%}"
    return macro + end + template
