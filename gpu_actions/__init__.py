"""GPU action modules: triage, fallback, load test, trace, forensics, restore. They run on the serving host, without Slack."""
