"""Building blocks of lottery-ticket studies: rewinding, control masks, mode connectivity."""
