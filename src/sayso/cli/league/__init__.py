"""The league: every aligner on the same ratings with the same budget, judged by a hidden truth."""

from sayso.cli.league.config import LeagueConfig
from sayso.cli.league.running import league, plan

__all__ = ["LeagueConfig", "league", "plan"]
