"""The coordinator's page: the federation, a run while it goes on, who can teach what, runs side by side."""
