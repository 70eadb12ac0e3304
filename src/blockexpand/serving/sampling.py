"""How the next token is drawn: what a person may set, and within which bounds."""

from __future__ import annotations

import dataclasses

from blockexpand.errors import ChatError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of an answer."""

    max_tokens: int = 256
    """Of an answer, at most."""

    temperature: float = 0.7
    """0 takes the likeliest token each time; otherwise 0.01 to 2."""

    top_p: float = 0.95
    """Only the likeliest tokens that together have this probability."""

    top_k: int = 0
    """Only so many of the likeliest tokens; 0: all."""

    seed: int | None = None
    """For the same answers again; none: new ones each time."""

    def __post_init__(self) -> None:
        """ChatError for values that mean nothing."""
        _expect("max_tokens", self.max_tokens, 1 <= self.max_tokens <= 100_000, "1 to 100000")
        _expect(
            "temperature", self.temperature, self.temperature == 0 or 0.01 <= self.temperature <= 2, "0, or 0.01 to 2"
        )
        _expect("top_k", self.top_k, 0 <= self.top_k <= 1_000_000, "0 to 1000000")
        _expect("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1")
        _expect("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "0 to 2^63 - 1, or none")

    def changed(self, name: str, value: object) -> Sampling:
        """These settings with one changed, given as a number or as text.

        Raises:
            ChatError: there is no such setting, or the value is no number or out of bounds.
        """
        kinds = {"max_tokens": int, "temperature": float, "top_p": float, "top_k": int, "seed": int}
        if name not in kinds:
            raise ChatError(f"there is no setting {name!r}; {nearest(name, kinds)}; change one as /set temperature=0.5")
        if name == "seed" and value in (None, "", "none"):
            return dataclasses.replace(self, seed=None)
        try:
            number = kinds[name](str(value))
        except ValueError:
            raise ChatError(f"{name} is {value!r}, expected a number; set one as /set {name}=1") from None
        return dataclasses.replace(self, **{name: number})


def _expect(name: str, value: object, holds: bool, bounds: str) -> None:
    if not holds:
        raise ChatError(f"{name} is {value}, expected {bounds}; set it to one of these")
