"""The answer to one question, and what to do about it."""

import dataclasses
from typing import Literal

State = Literal["ok", "warning", "failure", "skipped"]


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """`words` say what was found, `remedy` what to do; a failure always has one."""

    check: str
    state: State
    words: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.state == "failure" and not self.remedy:
            raise ValueError(f"the failure of {self.check} has no remedy")
