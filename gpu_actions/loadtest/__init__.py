"""Load an endpoint and judge the figures. Exit 0 passed, 1 failed its limits, 3 void."""
