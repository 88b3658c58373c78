"""One mask update: parameter groups, scores, the exact choice of units, the plan, and the commit."""
