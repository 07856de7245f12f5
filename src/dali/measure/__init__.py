"""Running a loaded model to learn something of it: its speed, and where its tokens are routed."""
