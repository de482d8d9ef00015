"""What a sweep does: suites and profiles read from TOML, and the jobs that follow from them and from the rows there are."""

from vitgs.suite.tables import Profile, Suite, SystemEntry, load_profile, load_suite, profile_names, suite_names

__all__ = ["Profile", "Suite", "SystemEntry", "load_profile", "load_suite", "profile_names", "suite_names"]
