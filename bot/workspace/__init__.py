"""The local Slack-compatible workspace: Web API, Socket Mode and a web page, for demonstration, drills and tests."""
