"""Parts that make tokens fewer: utility, selection, merging. Shared by the method and the comparison systems; they know no model."""
