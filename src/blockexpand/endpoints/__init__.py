"""Models behind an OpenAI-compatible address: ask, wait, try again, and say what went wrong."""

from blockexpand.endpoints.asking import Answer, Endpoint, Message, Request, ask_all

__all__ = ["Answer", "Endpoint", "Message", "Request", "ask_all"]
