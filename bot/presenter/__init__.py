"""What people see: pure functions from state to Block Kit blocks, and the loop that edits messages live."""
