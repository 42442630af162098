"""The paper's evaluation: what to run (plan), running it (runner), and our results beside the published ones (page)."""
