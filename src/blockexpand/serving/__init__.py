"""A model with its packs behind an OpenAI-compatible address, each pack under a name of its own."""

from blockexpand.serving.answers import Choice, names_of
from blockexpand.serving.api import Service, build_service, serve
from blockexpand.serving.conversation import Conversation
from blockexpand.serving.facts import Facts
from blockexpand.serving.page import Page, build_page, serve_page
from blockexpand.serving.sampling import Sampling
from blockexpand.serving.speaker import Speaker, open_speaker
from blockexpand.serving.terminal import talk

__all__ = [
    "Conversation",
    "Facts",
    "Page",
    "Sampling",
    "Speaker",
    "build_page",
    "open_speaker",
    "serve_page",
    "talk",
    "Choice",
    "Service",
    "build_service",
    "names_of",
    "serve",
]
