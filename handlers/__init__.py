"""Slack handlers: one module a slash command. They acknowledge, check access, ask for a run and return."""
