"""From what a user asks to what the workers do: plan_job(spec, card, facts) -> JobPlan. Pure; imports no torch.

cut: layers -> blocks; levels: the range of the noise and its edges; tasks: the graph; cautions: what is planned, and
said to be unwise.
"""

from dbserve.cards import list_cards, load_card
from dbserve.planner.job import plan_job

__all__ = ["list_cards", "load_card", "plan_job"]
