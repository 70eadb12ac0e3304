"""Multi-turn episodes with a tool, and judged conversations: a model in this process or behind an address."""

from blockexpand.agents.conversations import Question, load_questions
from blockexpand.agents.episodes import Episode, Manner, Turn
from blockexpand.agents.judging import JudgeRecord, JudgeRun, JudgeSettings, Sides, judge_pair, read_judge
from blockexpand.agents.puzzles import make_puzzles
from blockexpand.agents.records import (
    DEFAULT_BUDGETS,
    AgentRecord,
    AgentRun,
    AgentSettings,
    Opposite,
    Rate,
    Routes,
    read_agent,
)
from blockexpand.agents.replaying import Replay, replay
from blockexpand.agents.running import Cast, run_agent
from blockexpand.agents.speakers import EndpointSpeaker, LoadedSpeaker, Speaker, load_speaker
from blockexpand.agents.tasks import Task, load_tasks
from blockexpand.agents.tools import SandboxTools

__all__ = [
    "DEFAULT_BUDGETS",
    "AgentRecord",
    "AgentRun",
    "AgentSettings",
    "Cast",
    "EndpointSpeaker",
    "Episode",
    "JudgeRecord",
    "JudgeRun",
    "JudgeSettings",
    "LoadedSpeaker",
    "Manner",
    "Opposite",
    "Question",
    "Rate",
    "Replay",
    "Routes",
    "SandboxTools",
    "Sides",
    "Speaker",
    "Task",
    "Turn",
    "judge_pair",
    "load_questions",
    "load_speaker",
    "load_tasks",
    "make_puzzles",
    "read_agent",
    "read_judge",
    "replay",
    "run_agent",
]
