"""Iterative pruning with rewinding: the pruning engine and ``LotteryTicket``."""
