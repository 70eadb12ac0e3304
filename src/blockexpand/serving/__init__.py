"""Talking to a model: in the terminal, by OpenAI's API, on a page with the base and the expanded model side by side."""

from blockexpand.serving.answers import Choice, names_of
from blockexpand.serving.api import Service, build_service, serve
from blockexpand.serving.conversation import Conversation
from blockexpand.serving.facts import Facts
from blockexpand.serving.sampling import Sampling
from blockexpand.serving.speaker import Speaker, open_speaker
from blockexpand.serving.terminal import talk
