"""The bot: settings, the run engine, approvals, artifacts, and the messages that Slack shows."""
