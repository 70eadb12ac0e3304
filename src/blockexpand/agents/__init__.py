"""Multi-turn episodes with a tool, and judged conversations: a model in this process or behind an address."""

from blockexpand.agents.conversations import load_questions
from blockexpand.agents.judge import judge_pair
from blockexpand.agents.puzzles import make_puzzles
from blockexpand.agents.runs import Cast, run_agent
from blockexpand.agents.speakers import EndpointSpeaker, LoadedSpeaker, Speaker, load_speaker
from blockexpand.agents.tasks import load_tasks
from blockexpand.agents.tools import SandboxTools
from blockexpand.records.agents import (
    DEFAULT_BUDGETS,
    AgentRecord,
    AgentRun,
    AgentSettings,
    Episode,
    Manner,
    Opposite,
    Rate,
    Task,
    Turn,
    read_agent,
)
from blockexpand.records.judge import JudgeRecord, JudgeRun, JudgeSettings, Question, read_judge
