"""From records alone to a page, figures and tables: joining rows, intervals, fronts, comparisons, rendering. Imports neither torch nor a system."""
