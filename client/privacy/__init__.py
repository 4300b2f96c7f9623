"""Private training: the engine, and the budget that is charged before it looks."""
