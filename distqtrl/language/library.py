"""The libraries of the extra ``llm``, imported when a language model is asked for, and never told to fetch anything."""

from typing import Any

from distqtrl.errors import UserError

PACKAGES = ("transformers", "tokenizers")


def transformers() -> Any:
    """The library; raises UserError where the extra is not installed."""
    try:
        import tokenizers  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(f"language models need {error.name or 'transformers'}: pip install 'distqtrl[llm]'") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
