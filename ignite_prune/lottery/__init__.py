"""Tools for lottery-ticket experiments: rewinding, control masks, mode connectivity."""
