"""Runs or resumes a suite: the results file is the truth, the Optuna study and the plan are rebuilt from it at each start."""

from vitgs.sweep.drive import Summary, run_sweep

__all__ = ["Summary", "run_sweep"]
