"""Scores from counts: `counts` counts pixels, `scores` makes scores of them, `worst_case` takes the worst attacks."""
