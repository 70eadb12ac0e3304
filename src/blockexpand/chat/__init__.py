"""Talking to a model: in the terminal, and on a page with base and expanded answers side by side."""

from blockexpand.chat.conversation import Conversation
from blockexpand.chat.facts import Facts
from blockexpand.chat.sampling import Sampling
from blockexpand.chat.speaking import Speaker, open_speaker
from blockexpand.chat.terminal import talk
from blockexpand.chat.web import Page, build_page, serve_page

__all__ = ["Conversation", "Facts", "Page", "Sampling", "Speaker", "build_page", "open_speaker", "serve_page", "talk"]
