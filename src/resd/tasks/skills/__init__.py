"""General skills with exact judges: what a model is to keep while it learns something else."""

from resd.tasks.skills.environment import SkillsEnvironment

__all__ = ["SkillsEnvironment"]
