"""Configurations of other tools, translated into ours.

Every key of theirs ends in one of four places: a key of ours (with a remark where the
two are not quite the same), a reason why it means nothing here, the list of what has
no equivalent, with what to do instead, or a refusal, where what it asks for cannot be
trained here at all.
"""

from jaxpeft.convert_config.draft import Draft
from jaxpeft.convert_config.llamafactory import from_llamafactory
from jaxpeft.convert_config.training_arguments import from_training_arguments
from jaxpeft.convert_config.writing import to_yaml

__all__ = ["Draft", "from_llamafactory", "from_training_arguments", "to_yaml"]
