"""A model with its packs behind an OpenAI-compatible address, each pack under a name of its own."""

from blockexpand.serving.answering import Choice, names_of
from blockexpand.serving.server import Service, build_service, serve

__all__ = ["Choice", "Service", "build_service", "names_of", "serve"]
